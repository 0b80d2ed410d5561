"""Reads: how long a page takes by the number of accounts followed and by depth, with a million
posts stored.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from django.db import connection

from benchmarks import database, reading, tables, workload
from benchmarks.stand import Stand
from benchmarks.tables import progress
from feeds.models import RESTING
from feeds.timeline import Reader
from posts.pagination import DEFAULT_LIMIT, START, Position

AUTHORS = 10_000
PULLED_AUTHORS = 5_000
FOLLOWEES = (10, 100, 1_000, 5_000)
READERS = 5  # of each kind
CAP = 800

# Authors do not post alike: a tenth of them writes a third of the posts. Every hundredth of the
# first `AUTHORS` is pulled, as by the hybrid strategy; those above are pulled without exception.
_POSTS = """
INSERT INTO posts (id, author_id, content, created_at, fanout)
SELECT n, author, %(text)s, now(), CASE WHEN author > %(authors)s OR author %% 100 = 0 THEN 1 ELSE 0 END
FROM (
    SELECT n, CASE WHEN n %% 3 = 0 THEN %(authors)s + 1 + floor(%(pulled)s * random() ^ 2)::bigint
        ELSE 1 + floor(%(authors)s * random() ^ 2)::bigint END AS author
    FROM generate_series(1, %(posts)s) AS n
) AS new
"""
_AUTHORS = """
INSERT INTO feeds (user_id, pulled_since)
SELECT n, CASE WHEN n > %(authors)s OR n %% 100 = 0 THEN timestamptz 'epoch' END
FROM generate_series(1, %(authors)s + %(pulled)s) AS n
"""
_OTHERS = """
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT 100000 + n %% 10000, id, author_id FROM generate_series(1, %s) AS n JOIN posts ON id = n ORDER BY 1, 2
"""
_FOLLOW = """
INSERT INTO follows (follower_id, followee_id, event_id)
SELECT reader, followee, 1 FROM unnest(%(readers)s::bigint[]) AS reader CROSS JOIN LATERAL (
    SELECT n AS followee FROM generate_series(%(first)s, %(last)s) AS n
    ORDER BY hashint8(n * 100000 + reader) LIMIT %(count)s
) AS followees
"""
_READERS = "INSERT INTO feeds (user_id, floor, idle) SELECT unnest(%s::bigint[]), %s, %s"
# The newest `CAP` posts and one more, where the floor is.
_ENTRIES = """
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT reader, post.id, post.author_id FROM unnest(%(readers)s::bigint[]) AS reader CROSS JOIN LATERAL (
    SELECT id, author_id FROM follows JOIN posts ON author_id = followee_id
    WHERE follower_id = reader AND deleted_event_id IS NULL AND fanout = 0 ORDER BY id DESC LIMIT %(cap)s + 1
) AS post ORDER BY 1, 2
"""
_FLOORS = """
UPDATE feeds SET floor = lowest.id
FROM (SELECT user_id, min(post_id) AS id FROM feed_entries WHERE user_id = ANY(%s) GROUP BY 1) AS lowest
WHERE feeds.user_id = lowest.user_id
"""
_ENTRY = (
    "SELECT post_id FROM feed_entries WHERE user_id = %s ORDER BY post_id DESC OFFSET %s LIMIT 1"
)


class Depth(NamedTuple):
    """Where a page begins: after so many entries from the newest, or at a share of all posts ever
    written.
    """

    name: str
    entries: int = 0
    share: float = 0.0
    newer: bool = False

    def position(self, user: int, posts: int) -> Position:
        """Return where the page of the user begins, with `posts` of all authors, whose ids are 1 to
        `posts`.
        """
        if self.share:
            return Position(int(posts * self.share), self.newer)
        if not self.entries:
            return START
        found = database.column(_ENTRY, [user, self.entries])
        # Nothing is materialised of a feed that is pulled altogether.
        return Position(found[0] if found else int(posts * 0.99), self.newer)


DEPTHS = (
    Depth("first page"),
    Depth("above the floor", entries=700),
    Depth("across the floor", entries=CAP - 10),
    Depth("below the floor", entries=CAP),
    Depth("at the first tenth of all posts", share=0.1),
    Depth("the same, towards newer", share=0.1, newer=True),
)


class Readers(NamedTuple):
    """Readers of one kind, and such whose feeds rest."""

    name: str
    users: list[int]
    resting: list[int]


Positions = dict[Depth, dict[int, Position]]


def run(stand: Stand, quick: bool) -> None:
    """Measure over HTTP, then the queries alone; show the plans for the longest list of
    followees.
    """
    posts, times = (200_000, 2) if quick else (1_000_000, 20)
    _fill(posts)
    kinds = [
        _add(f"{count:,}", 1_000_000 + 100 * count, count, range(1, AUTHORS + 1))
        for count in FOLLOWEES
    ]
    pulled = range(AUTHORS + 1, AUTHORS + PULLED_AUTHORS + 1)
    kinds.append(_add(f"{PULLED_AUTHORS:,}, all pulled", 9_000_000, PULLED_AUTHORS, pulled))
    database.execute("VACUUM ANALYZE posts, feeds, feed_entries, follows")
    users = [user for kind in kinds for user in kind.users]
    positions = {depth: {user: depth.position(user, posts) for user in users} for depth in DEPTHS}
    head = ["page, p50 / p95 ms", *(kind.name for kind in kinds)]
    with stand.api() as port:
        rows = _over_http(reading.Client(port), kinds, positions, times)
    tables.table(f"Reads by followees over HTTP, one at a time, {posts:,} posts", head, rows)
    head[0] = "page, p50 / p95 / CPU ms"
    tables.table("The same, the queries alone", head, _alone(kinds, positions, times))
    if not quick:
        reader = kinds[-2].users[0]
        _plans(reader, positions[DEPTHS[2]][reader])


def _fill(posts: int) -> None:
    progress(f"reads: writing {posts:,} posts")
    workload.empty()
    database.execute("SELECT setseed(0.5)")
    authors = {"authors": AUTHORS, "pulled": PULLED_AUTHORS}
    database.execute(_POSTS, {"text": workload.TEXT, "posts": posts, **authors})
    database.execute(_AUTHORS, authors)
    database.execute(_OTHERS, [posts])
    database.execute("ANALYZE posts, follows")


def _add(name: str, first: int, count: int, authors: range) -> Readers:
    progress(f"reads: readers of {name}")
    readers = Readers(
        name, list(range(first, first + READERS)), list(range(first + 50, first + 50 + READERS))
    )
    of = {"first": authors[0], "last": authors[-1], "count": count}
    database.execute(_FOLLOW, {"readers": readers.users + readers.resting, **of})
    database.execute(
        "UPDATE follows SET idle = true WHERE follower_id = ANY(%s)", [readers.resting]
    )
    database.execute(_READERS, [readers.users, 0, False])
    database.execute(_READERS, [readers.resting, RESTING, True])
    database.execute(_ENTRIES, {"readers": readers.users, "cap": CAP})
    database.execute(_FLOORS, [readers.users])
    return readers


def _over_http(
    client: reading.Client, kinds: list[Readers], positions: Positions, times: int
) -> list[list[str]]:
    client.wait_for_cache(kinds[0].users[0])
    rows = [
        ["first page, cached", *(_cell(client.cached, kind.users, times * 5) for kind in kinds)]
    ]
    for depth, of in positions.items():
        progress(f"reads over HTTP: {depth.name}")
        read = partial(_uncached, client, of)
        rows.append([depth.name, *(_cell(read, kind.users, times) for kind in kinds)])
    rows.append(
        [
            "first page of a feed at rest",
            *(_cell(client.uncached, kind.resting, times) for kind in kinds),
        ]
    )
    return rows


def _uncached(client: reading.Client, positions: dict[int, Position], user: int) -> float:
    return client.uncached(user, reading.query_of(positions[user]))


def _alone(kinds: list[Readers], positions: Positions, times: int) -> list[list[str]]:
    rows = []
    for depth, of in positions.items():
        progress(f"reads, the queries alone: {depth.name}")
        rows.append([depth.name, *(_query_cell(of, kind.users, times) for kind in kinds)])
    resting = {user: START for kind in kinds for user in kind.resting}
    rows.append(
        [
            "first page of a feed at rest",
            *(_query_cell(resting, kind.resting, times) for kind in kinds),
        ]
    )
    return rows


def _query_cell(positions: dict[int, Position], users: list[int], times: int) -> str:
    with database.measured() as cost:
        latencies = _cell(lambda user: reading.query_seconds(user, positions[user]), users, times)
    return f"{latencies} / {cost.cpu / (len(users) * (times + 1)) * 1000:.1f}"


def _cell(read: Callable[[int], float], users: list[int], times: int) -> str:
    return reading.p50_p95(reading.repeat(read, users, times))


def _plans(user: int, position: Position) -> None:
    """Print the plan of each query of a page across the floor: pushed, who is pulled, pulled, below
    the floor.
    """
    statements: list[tuple[str, Any]] = []

    def keep(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(keep):
        Reader(user).read(position, DEFAULT_LIMIT + 1)
    for sql, params in statements:
        plan = database.column(
            f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF) {sql}", params
        )
        tables.note("\n".join(["```", *plan, "```"]))
