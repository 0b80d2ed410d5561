"""The proof that the materialised feeds equal their definition: the invariant of `feeds.models`, as
set-based SQL.

    expected(u) = pushed, undeleted posts above floor(u) by u and by everyone u follows and
                  has not muted
    stored(u)   = feed_entries of u above floor(u)

where the floor is `feeds.floor` or the horizon, whichever is higher.

Users are taken in ranges; each comparison is one statement, hence one snapshot, so it is true also
while workers run. A post to more followers than fit one transaction (`FEED_BATCH_MAX_ROWS`) shows
as missing until its fan-out is through. One that is being withdrawn from so many is no difference:
its rows, which nobody sees, are counted apart.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eventbus import cells, identity
from eventbus.database import locks
from eventbus.database.current import atomic
from eventbus.database.plans import without_loops
from eventbus.database.sql import execute, fetch
from eventbus.ids.snowflake import MAX_ID
from feeds.models import (
    BLOCKED,
    BLOCKS_OF_FOLLOW,
    FLOOR,
    IN_FEED,
    LATER_THAN_BLOCKS,
    RESTING,
    Feed,
)
from feeds.partitions import partitions
from feeds.read import era, here
from posts.models import ALIVE, PULLED, PUSHED

# What a range is made to hold, by the estimate of the table's size: enough for one hash join in
# memory.
ROWS_A_RANGE = 1_000_000
WORK_MEM = "256MB"
SHOWN = 20


class Scope(NamedTuple):
    """The users above `after` up to `up_to`; of them only `users`, if that is not None."""

    after: int = 0
    up_to: int = MAX_ID
    users: list[int] | None = None

    def sql(self, column: str) -> str:
        condition = f"{column} > %(after)s AND {column} <= %(up_to)s"
        return condition if self.users is None else f"{condition} AND {column} = ANY(%(users)s)"


_EXPECTED = """
SELECT reader AS user_id, posts.id AS post_id, posts.author_id
FROM (
    SELECT follower_id AS reader, followee_id AS author FROM follows WHERE {in_feed}
    UNION ALL
    SELECT user_id, user_id FROM feeds
) AS reads
LEFT JOIN feeds ON feeds.user_id = reader AND {of_user}
JOIN posts ON posts.author_id = reads.author AND {pushed}
    AND id > {floor}
WHERE coalesce(floor, 0) < {resting} AND {scope}
"""

_STORED = """
SELECT entry.user_id, entry.post_id, entry.author_id
FROM feed_entries AS entry LEFT JOIN feeds ON feeds.user_id = entry.user_id AND {of_user}
WHERE entry.post_id > {floor} AND {scope}
"""

_PAIRS = """
WITH pairs AS (
    SELECT
        CASE
            WHEN stored.post_id IS NULL THEN 'missing'
            WHEN expected.post_id IS NOT NULL THEN 'equal'
            WHEN stored.post_id IN (SELECT post_id FROM withdrawals) THEN 'leaving'
            ELSE 'extra'
        END AS kind,
        user_id, post_id, author_id
    FROM ({expected}) AS expected FULL JOIN ({stored}) AS stored USING (user_id, post_id, author_id)
)
"""
_COUNT = "SELECT kind, count(*) FROM pairs GROUP BY 1"
_FIRST = """
SELECT kind, user_id, post_id, author_id FROM pairs WHERE kind IN ('missing', 'extra') ORDER BY 1, 2, 3 LIMIT {shown}
"""

_DUPLICATES = (
    "SELECT user_id, post_id FROM feed_entries WHERE {scope} GROUP BY 1, 2 HAVING count(*) > 1"
)

_REMOVE_EXTRA = """
DELETE FROM feed_entries USING pairs
WHERE kind = 'extra' AND feed_entries.user_id = pairs.user_id AND feed_entries.post_id = pairs.post_id
"""
_ADD_MISSING = """
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT user_id, post_id, author_id FROM pairs WHERE kind = 'missing' ORDER BY 1, 2
"""

# Users of whom `feeds` or `follows` does not say what it must: no row though they post or follow or
# are followed, a wrong number of followers, a feed at rest that the fan-out serves or the other way
# round, one that does not rest of a user whom another cell holds, an author with pulled posts whom no reader watches.
_WRONG_STATES = """
SELECT user_id FROM (
    SELECT coalesce(feeds.user_id, one.id) AS user_id,
        feeds.user_id IS NULL OR follower_count <> coalesce(followers.n, 0) OR (idle AND floor < {resting})
            OR (NOT idle AND NOT {held})
            OR (pulled_since IS NULL AND pulled.author_id IS NOT NULL) OR differing.follower_id IS NOT NULL AS wrong
    FROM (SELECT * FROM feeds WHERE {of_user}) AS feeds
    FULL JOIN (
        SELECT author_id FROM posts WHERE {alive} AND {of_author}
        UNION SELECT follower_id FROM follows WHERE {of_follower}
        UNION SELECT followee_id FROM follows WHERE active AND {of_followee}
    ) AS one (id) ON one.id = feeds.user_id
    LEFT JOIN (SELECT followee_id, count(*) AS n FROM follows WHERE active AND {of_followee} GROUP BY 1) AS followers
        ON followee_id = feeds.user_id
    LEFT JOIN (
        SELECT DISTINCT author_id FROM posts WHERE {pulled} AND {of_author}
    ) AS pulled ON pulled.author_id = feeds.user_id
    LEFT JOIN (
        SELECT DISTINCT follower_id FROM follows JOIN feeds ON feeds.user_id = follower_id
        LEFT JOIN mutes ON mutes.user_id = follower_id AND muted_id = followee_id
        {blocks_of_follow}
        WHERE ({contradicts}) AND {of_follower} AND {of_user}
    ) AS differing ON differing.follower_id = feeds.user_id
) AS states
WHERE wrong
"""
_MEND_STATES = """
INSERT INTO feeds AS feeds (user_id, idle, floor, follower_count, pulled_since)
SELECT
    wrong.id, NOT {new_held}, CASE WHEN {new_held} THEN 0 ELSE {resting} END,
    (SELECT count(*) FROM follows WHERE followee_id = wrong.id AND active),
    (SELECT now() FROM posts WHERE author_id = wrong.id AND {pulled} LIMIT 1)
FROM unnest(%(wrong)s::bigint[]) AS wrong (id) ORDER BY 1
ON CONFLICT (user_id) DO UPDATE SET
    idle = feeds.idle OR EXCLUDED.idle,
    follower_count = EXCLUDED.follower_count,
    pulled_since = coalesce(feeds.pulled_since, EXCLUDED.pulled_since),
    floor = CASE WHEN feeds.idle OR EXCLUDED.idle THEN {resting} ELSE feeds.floor END
"""
_MEND_FOLLOWS = """
UPDATE follows SET active = truth.active, held = truth.held, idle = truth.idle, muted = truth.muted
FROM (
    SELECT follower_id, followee_id, feeds.idle, coalesce(mutes.active, false) AS muted,
        {wanted} AND NOT {blocked} AS active, {wanted} AND {blocked} AS held
    FROM follows JOIN feeds ON feeds.user_id = follower_id
    LEFT JOIN mutes ON mutes.user_id = follower_id AND muted_id = followee_id
    {blocks_of_follow}
    WHERE follower_id = ANY(%(wrong)s) AND ({contradicts})
) AS truth
WHERE follows.follower_id = truth.follower_id AND follows.followee_id = truth.followee_id
RETURNING follows.followee_id
"""

# Of a row of `follows`: what it repeats is not what `feeds`, `mutes` and `blocks` say.
_WANTED = f"(follows.active OR follows.held) AND {LATER_THAN_BLOCKS}"
_CONTRADICTS = f"""
    follows.idle <> feeds.idle OR follows.muted <> coalesce(mutes.active, false)
    OR follows.active <> ({_WANTED} AND NOT {BLOCKED}) OR follows.held <> ({_WANTED} AND {BLOCKED})
"""

_CONSTANTS = {
    "alive": ALIVE,
    "pushed": PUSHED,
    "pulled": PULLED,
    "floor": FLOOR,
    "in_feed": IN_FEED,
    "blocks_of_follow": BLOCKS_OF_FOLLOW,
    "blocked": BLOCKED,
    "wanted": _WANTED,
    "contradicts": _CONTRADICTS,
    "resting": RESTING,
    "shown": SHOWN,
}
# For hash joins of a whole range; to be set in each transaction.
_MORE_MEMORY = f"SET LOCAL work_mem = '{WORK_MEM}'"


class Difference(NamedTuple):
    kind: str  # missing, extra or duplicate
    user_id: int
    post_id: int
    author_id: int


@dataclass(slots=True)
class Report:
    """What `verify` has found: how much of what, and the first differences."""

    entries: int = 0
    missing: int = 0
    extra: int = 0
    duplicate: int = 0
    leaving: int = 0  # rows of deleted posts that are being withdrawn
    wrong_states: int = 0
    first: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (self.missing or self.extra or self.duplicate or self.wrong_states)


Track = Callable[[Sequence[Scope]], Iterable[Scope]]


def verify(users: Sequence[int] | None = None, track: Track = iter) -> Report:
    """Compare the stored feeds of `users` (None: all) with their definition; `track` goes through
    the ranges.
    """
    report = Report(wrong_states=len(_wrong_states(users)))
    for scope in track(scopes(users)):
        _verify(scope, report)
    return report


def repair(users: Sequence[int] | None = None, track: Track = iter) -> None:
    """Make the stored feeds of `users` (None: all) equal to their definition; for each range in
    turn workers wait.

    Every page cached so far is void, and no longer shown, when this returns.
    """
    _repair_states(users)
    for scope in track(scopes(users)):
        _repair(scope)
    here.pages.wait_until_noticed()


def scopes(users: Sequence[int] | None = None) -> list[Scope]:
    """Divide the users into ranges of about `ROWS_A_RANGE` rows."""
    if users is not None:
        return [Scope(users=list(users))]
    step = _users_a_range()
    ends: list[int] = []
    feeds = Feed.objects.order_by("user_id").values_list("user_id", flat=True)
    while end := feeds.filter(user_id__gt=ends[-1] if ends else 0)[step - 1 : step].first():
        ends.append(end)
    return [Scope(after, up_to) for after, up_to in zip([0, *ends], [*ends, MAX_ID], strict=True)]


def _users_a_range() -> int:
    rows = sum(partition.rows for partition in partitions())
    return max(1, Feed.objects.count() * ROWS_A_RANGE // max(rows, ROWS_A_RANGE))


@atomic()
def _verify(scope: Scope, report: Report) -> None:
    _prepare(scope)
    counts = dict(_fetch(_PAIRS + _COUNT, scope))
    report.entries += counts.get("equal", 0) + counts.get("extra", 0)
    report.leaving += counts.get("leaving", 0)
    report.missing += counts.get("missing", 0)
    report.extra += counts.get("extra", 0)
    duplicates = _fetch(_DUPLICATES, scope)
    report.duplicate += len(duplicates)
    if room := SHOWN - len(report.first):
        report.first += [Difference("duplicate", user, post, 0) for user, post in duplicates][:room]
        if counts.keys() & {"missing", "extra"}:
            report.first += [Difference(*row) for row in _fetch(_PAIRS + _FIRST, scope)][:room]


@atomic()
def _repair(scope: Scope) -> None:
    locks.acquire_bulk_load()
    _prepare(scope)
    execute(_filled(_PAIRS + _REMOVE_EXTRA, scope), scope._asdict())
    execute(_filled(_PAIRS + _ADD_MISSING, scope), scope._asdict())
    era.mark_closed()


@atomic()
def _repair_states(users: Sequence[int] | None) -> None:
    locks.acquire_bulk_load()
    wrong = _wrong_states(users)
    execute(_constant(_MEND_STATES), {"wrong": wrong})
    mended = fetch(_constant(_MEND_FOLLOWS), {"wrong": wrong})
    # Of those whose follows have come into effect, or are no longer, the count may be another.
    followees = list({followee for (followee,) in mended})
    execute(_constant(_MEND_STATES), {"wrong": followees})
    era.mark_closed()


@atomic()
def _wrong_states(users: Sequence[int] | None) -> list[int]:
    scope = Scope(users=None if users is None else list(users))
    _prepare(scope)
    return [user_id for (user_id,) in _fetch(_WRONG_STATES, scope)]


def _prepare(scope: Scope) -> None:
    """Have the transaction compare what is of the scope as fast as can be."""
    execute(_MORE_MEMORY)
    if scope.users is None:
        without_loops()


def _fetch(statement: str, scope: Scope) -> list[tuple[Any, ...]]:
    return fetch(_filled(statement, scope), scope._asdict())


def _constant(statement: str) -> str:
    return statement.format(**_CONSTANTS, **_held())


def _held() -> dict[str, str]:
    """Return the conditions that this cell holds a user."""
    held = identity.held()
    return {
        "held": cells.among_sql("feeds.user_id", held),
        "new_held": cells.among_sql("wrong.id", held),
    }


def _filled(statement: str, scope: Scope) -> str:
    """Return the statement for the users of `scope`."""
    scopes = {
        "of_user": scope.sql("feeds.user_id"),
        "of_author": scope.sql("author_id"),
        "of_follower": scope.sql("follower_id"),
        "of_followee": scope.sql("followee_id"),
    }
    expected = _EXPECTED.format(**_CONSTANTS, **scopes, scope=scope.sql("reader"))
    stored = _STORED.format(**_CONSTANTS, **scopes, scope=scope.sql("entry.user_id"))
    return statement.format(
        **_CONSTANTS,
        **_held(),
        **scopes,
        scope=scope.sql("user_id"),
        expected=expected,
        stored=stored,
    )
