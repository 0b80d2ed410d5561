"""The proof that the materialised feeds equal their definition: the invariant of `feeds.models`, as set-based SQL.

    expected(u) = pushed, undeleted posts above floor(u) by u and by everyone u follows
    stored(u)   = feed_entries of u above floor(u)

Each query is one statement, hence one snapshot, so it is true also while workers run. A post to more followers than
fit one transaction (`FEED_BATCH_MAX_ROWS`) shows as missing until its fan-out is through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction

from eventbus import locks

_USERS = "(%(all)s OR user_id = ANY(%(users)s))"

_EXPECTED = f"""
SELECT reader AS user_id, posts.id AS post_id, posts.author_id
FROM (
    SELECT follower_id AS reader, followee_id AS author FROM follows WHERE active
    UNION ALL
    SELECT DISTINCT author_id, author_id FROM posts
) AS reads
JOIN posts ON posts.author_id = reads.author AND deleted_event_id IS NULL AND fanout = 0
LEFT JOIN feeds ON feeds.user_id = reader
WHERE posts.id > coalesce(floor, 0) AND {_USERS.replace("user_id", "reader")}
"""  # noqa: S608 - composed of constants

_STORED = f"""
SELECT entry.user_id, entry.post_id, entry.author_id
FROM feed_entries AS entry LEFT JOIN feeds ON feeds.user_id = entry.user_id
WHERE entry.post_id > coalesce(floor, 0) AND {_USERS.replace("user_id", "entry.user_id")}
"""  # noqa: S608 - composed of constants

_MISSING = f"({_EXPECTED}) EXCEPT ALL ({_STORED})"
_EXTRA = f"({_STORED}) EXCEPT ({_EXPECTED})"
_DUPLICATE = f"""
SELECT user_id, post_id, min(author_id) FROM ({_STORED}) AS stored GROUP BY 1, 2 HAVING count(*) > 1
"""  # noqa: S608 - composed of constants

_WRONG_COUNTS = f"""
SELECT coalesce(user_id, followee_id) AS user_id FROM feeds
FULL JOIN (SELECT followee_id, count(*) AS n FROM follows WHERE active GROUP BY 1) AS counted ON followee_id = user_id
WHERE follower_count IS DISTINCT FROM coalesce(n, 0) AND {_USERS.replace("user_id", "coalesce(user_id, followee_id)")}
"""  # noqa: S608 - composed of constants

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of difference: how many rows, the first of them, and whose feeds they are in."""

    kind: str
    count: int
    first: Sequence[tuple[int, int, int]]  # user, post, author
    users: frozenset[int]


@dataclass(frozen=True, slots=True)
class Report:
    entries: int
    missing: Difference
    extra: Difference
    duplicate: Difference
    wrong_follower_counts: int

    @property
    def equal(self) -> bool:
        return not (self.missing.count or self.extra.count or self.duplicate.count or self.wrong_follower_counts)


def verify(users: Sequence[int] | None = None) -> Report:
    """Compare the stored feeds of `users` (None: all) with their definition."""
    return Report(
        entries=_count(_STORED, users),
        missing=_difference("missing", _MISSING, users),
        extra=_difference("extra", _EXTRA, users),
        duplicate=_difference("duplicate", _DUPLICATE, users),
        wrong_follower_counts=_count(_WRONG_COUNTS, users),
    )


@transaction.atomic
def repair(users: Sequence[int] | None = None) -> None:
    """Make the stored feeds of `users` (None: all) equal to their definition; workers wait meanwhile."""
    locks.acquire_bulk_load()
    for statement in _repairs():
        with connection.cursor() as cursor:
            cursor.execute(statement, _values(users))


def _repairs() -> Iterator[str]:
    yield f"""
        DELETE FROM feed_entries USING ({_EXTRA}) AS extra
        WHERE feed_entries.user_id = extra.user_id AND feed_entries.post_id = extra.post_id
    """  # noqa: S608 - composed of constants
    yield f"INSERT INTO feed_entries (user_id, post_id, author_id) {_MISSING} ORDER BY 1, 2 ON CONFLICT DO NOTHING"
    yield f"""
        INSERT INTO feeds (user_id, follower_count)
        SELECT user_id, (SELECT count(*) FROM follows WHERE followee_id = user_id AND active)
        FROM ({_WRONG_COUNTS}) AS wrong ORDER BY 1
        ON CONFLICT (user_id) DO UPDATE SET follower_count = EXCLUDED.follower_count
    """  # noqa: S608 - composed of constants


def _difference(kind: str, query: str, users: Sequence[int] | None) -> Difference:
    with connection.cursor() as cursor:
        cursor.execute(query, _values(users))
        rows = cursor.fetchall()
    return Difference(kind, len(rows), sorted(rows)[:SHOWN], frozenset(row[0] for row in rows))


def _count(query: str, users: Sequence[int] | None) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM ({query}) AS counted", _values(users))  # noqa: S608 - constants
        count: int = cursor.fetchone()[0]
    return count


def _values(users: Sequence[int] | None) -> dict[str, Any]:
    return {"all": users is None, "users": list(users or [])}
