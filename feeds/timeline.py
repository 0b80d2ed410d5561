"""Reading a feed: pushed rows and pulled posts above the floor, and below it the join that defines
the feed.

A page is cut by post id, which never changes and is unique, so posts that arrive while someone
pages shift nothing.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import structlog
from django import db

from eventbus.database.sql import fetch
from eventbus.ids.snowflake import MAX_ID
from feeds.models import FLOOR, IN_FEED, RESTING, Feed, Follow
from feeds.partitions import FEW, FURTHER, low_of
from posts.models import ALIVE, PULLED, PUSHED, SHOWN, PostRow
from posts.pagination import Position

log = structlog.get_logger(__name__)

# One statement, hence one snapshot, for the floor and the rows above it: a floor that rises
# meanwhile, and rows deleted below it, cannot open a gap between this and the join. The bounds of
# the range are literals, from which PostgreSQL sees which partitions it need not plan for. The
# limit is within the subquery, so that the index is read in its order whatever statistics say, and
# `OFFSET 0` has each post looked up by its key; what is no post any more comes as an entry without
# one.
_PUSHED = f"""
SELECT floor, is_to_note, starts, seen_post_id, post_id, post.id, post.author_id, {SHOWN}
FROM (
    SELECT
        {FLOOR} AS floor,
        last_read_at < now() - interval '1 hour' AS is_to_note,
        (SELECT starts FROM feed_horizon) AS starts,
        seen_post_id
    FROM (SELECT 1) AS one LEFT JOIN feeds ON user_id = %(user)s
) AS state
LEFT JOIN LATERAL (
    SELECT post_id FROM feed_entries
    WHERE user_id = %(user)s AND post_id >= %(first)s AND post_id <= %(high)s AND post_id > floor
    ORDER BY post_id {{direction}} LIMIT %(limit)s
) AS entry ON true
LEFT JOIN LATERAL (SELECT * FROM posts WHERE id = post_id OFFSET 0) AS post
    ON post.deleted_event_id IS NULL AND post.fanout = 0
ORDER BY post_id {{direction}}
"""  # noqa: S608 - composed of constants

# The posts of many authors that are nearest to one end of a range of ids. Only the authors of the
# `limit` nearest latest posts can matter, and of theirs only posts as near as the farthest of
# these. So a reader of 5,000 accounts costs 5,000 look-ups in an index, not 5,000 pages.
_NEAREST_IDS = """
WITH authors AS ({authors}),
nearest AS (
    SELECT author, near.id FROM authors CROSS JOIN LATERAL (
        SELECT id FROM posts WHERE author_id = author AND {kind} AND id > %(low)s AND id <= %(high)s
        ORDER BY id {direction} LIMIT 1
    ) AS near
    ORDER BY near.id {direction} LIMIT %(limit)s
),
farthest AS (SELECT {last}(id) AS id FROM nearest HAVING count(*) = %(limit)s),
found AS (
    SELECT near.id FROM nearest CROSS JOIN LATERAL (
        SELECT id FROM posts WHERE author_id = author AND {kind} AND id > %(low)s AND id <= %(high)s
          AND id {within} coalesce((SELECT id FROM farthest), {end})
        ORDER BY id {direction} LIMIT %(limit)s
    ) AS near
    ORDER BY near.id {direction} LIMIT %(limit)s
)
"""
_NEAREST = f"""
{_NEAREST_IDS}
SELECT post.id, author_id, {SHOWN}
FROM found CROSS JOIN LATERAL (SELECT * FROM posts WHERE posts.id = found.id OFFSET 0) AS post
ORDER BY post.id {{direction}}
"""  # noqa: S608 - composed of constants
_GIVEN = "SELECT unnest(%(authors)s::bigint[]) AS author"
_FOLLOWED = f"""
    SELECT followee_id AS author FROM (SELECT * FROM follows WHERE follower_id = %(user)s OFFSET 0) AS followed
    WHERE {IN_FEED} UNION ALL SELECT %(user)s
"""  # noqa: S608 - composed of constants


class _Direction(NamedTuple):
    direction: str
    last: str
    within: str
    end: int


_OLDER = _Direction("DESC", "min", ">=", 0)
_NEWER = _Direction("ASC", "max", "<=", MAX_ID)

# What a feed is made of, for those who compare or fill it: with the values `user`, `limit` and
# `EVERYTHING`.
NEWEST_BY_DEFINITION = _NEAREST.format(authors=_FOLLOWED, kind=ALIVE, **_OLDER._asdict())
NEWEST_PUSHED_IDS = _NEAREST_IDS.format(authors=_FOLLOWED, kind=PUSHED, **_OLDER._asdict())
EVERYTHING = {"low": 0, "high": MAX_ID}

# By the definition of a feed, and as soon as one is found: the nearest would cost a look-up an
# author.
_ANY_BEYOND = f"""
SELECT EXISTS (
    SELECT FROM ({_FOLLOWED}) AS authors CROSS JOIN LATERAL (
        SELECT FROM posts WHERE author_id = author AND {ALIVE} AND id > %(low)s AND id <= %(high)s
        ORDER BY id DESC LIMIT 1
    ) AS post
)
"""  # noqa: S608 - composed of constants


def newest_partitions_begin_after() -> int:
    """Return an id above which only the newest few partitions are, as far as this process knows."""
    return low_of(Reader._starts, MAX_ID, FEW)


class Range(NamedTuple):
    """The ids above `low` up to `high`."""

    low: int
    high: int


class _Entry(NamedTuple):
    post_id: int
    post: PostRow | None  # None: it is deleted, and its rows are still being withdrawn

    @classmethod
    def of(cls, post_id: int, *post: Any) -> "_Entry":
        return cls(post_id, PostRow(*post) if post[0] is not None else None)


class Reader:
    """Reads the feed of one user, and learns its state on the way."""

    # Where partitions start, as the last read was told. Out of date it costs time and nothing else.
    _starts: ClassVar[Sequence[int]] = ()

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.floor: int | None = None  # or the horizon, if that is higher
        self.seen: int | None = None  # up to which post the user has seen the feed
        self._is_to_note = False
        self._may_rest = False
        self._pulled_authors: Sequence[int] | None = None

    def pulled_authors(self) -> Sequence[int]:
        """Return those the user follows, or is, whose posts may have to be pulled; asked once."""
        # Not a cached_property: before Python 3.12 that holds one lock for all instances while it
        # asks.
        if self._pulled_authors is None:
            self._pulled_authors = Follow.objects.pulled_by(self.user_id)
        return self._pulled_authors

    @property
    def cacheable(self) -> bool:
        """Tell whether changes will void a page that was read: they void none of a feed that rests,
        or soon may.
        """
        return not self._may_rest

    def read(self, position: Position, limit: int) -> list[PostRow]:
        """Return up to `limit` posts beyond `position`, nearest to it first.

        One query for what was pushed, one if posts may have to be pulled, one if the page reaches
        below the floor.
        """
        if position.newer:
            return self._read_newer(Range(position.id, MAX_ID), limit)
        return self._read_older(Range(0, position.id), limit)

    def any_beyond(self, position: Position) -> bool:
        """Tell whether the feed has a post beyond `position`, without looking for the nearest."""
        wanted = Range(position.id, MAX_ID) if position.newer else Range(0, position.id)
        found: bool = fetch(_ANY_BEYOND, {"user": self.user_id, **wanted._asdict()})[0][0]
        return found

    def note(self) -> None:
        """Remember that the feed was read, about once an hour, and have it materialised if it
        rests. Never fails.
        """
        rests = self.floor == RESTING
        if not (rests or self._is_to_note):
            return
        try:
            floor = Feed.objects.note_read(self.user_id)
        except db.Error as error:
            # Such as a standby that only reads: the page is right all the same.
            log.warning("read_not_noted", error=str(error))
            floor = None
        # Not noted: the walk may put the feed to rest any moment, and then nothing voids its pages.
        self._may_rest |= rests or floor in (None, RESTING)

    def _read_older(self, wanted: Range, limit: int) -> list[PostRow]:
        floor, posts = self._above_floor(_OLDER, wanted, limit)
        if len(posts) < limit and floor > 0:
            below = Range(wanted.low, min(wanted.high, floor))
            posts += self._nearest(_OLDER, _FOLLOWED, ALIVE, below, limit - len(posts))
        return posts

    def _read_newer(self, wanted: Range, limit: int) -> list[PostRow]:
        floor, posts = self._above_floor(_NEWER, wanted, limit)
        if wanted.low < floor:
            # Those below the floor are the nearer ones.
            posts = self._nearest(_NEWER, _FOLLOWED, ALIVE, Range(wanted.low, floor), limit) + posts
        return posts[:limit]

    def _above_floor(
        self, towards: _Direction, wanted: Range, limit: int
    ) -> tuple[int, list[PostRow]]:
        floor, posts = (
            self._pushed_older(wanted, limit)
            if towards is _OLDER
            else self._pushed_newer(wanted, limit)
        )
        # Only above the floor: below it the join finds pulled posts with all others.
        above = Range(max(wanted.low, floor), wanted.high)
        if above.low < above.high and self.pulled_authors():
            posts += self._nearest(towards, _GIVEN, PULLED, above, limit)
            posts.sort(key=lambda post: post.id, reverse=towards is _OLDER)
        return floor, posts[:limit]

    def _pushed_older(self, wanted: Range, limit: int) -> tuple[int, list[PostRow]]:
        """Return the newest pushed posts, and the id above which none of them is missing if there
        are fewer than asked.

        The newest few partitions fill most pages. Further ones are asked only if they do not: each
        costs time to plan.
        """
        posts: list[PostRow] = []
        left, few = wanted, FEW
        while True:
            part = Range(max(left.low, low_of(Reader._starts, left.high, few)), left.high)
            asked = limit - len(posts)
            floor, entries = self._entries(_OLDER, part, asked)
            posts += [entry.post for entry in entries if entry.post]
            # All down to here is known, at a floor that may be another one by the next statement.
            reached = entries[-1].post_id - 1 if len(entries) == asked else part.low
            if len(posts) == limit or reached <= max(floor, left.low):
                return min(floor, part.high), posts
            left, few = Range(left.low, reached), few * FURTHER

    def _pushed_newer(self, wanted: Range, limit: int) -> tuple[int, list[PostRow]]:
        """Return the oldest pushed posts above the floor, and the floor."""
        posts: list[PostRow] = []
        highest_floor = 0
        left = wanted
        while True:
            asked = limit - len(posts)
            floor, entries = self._entries(_NEWER, left, asked)
            posts += [entry.post for entry in entries if entry.post]
            highest_floor = max(highest_floor, floor)
            if len(posts) == limit or len(entries) < asked:
                # Between two statements a floor may have gone up, or down: the join has what is
                # below either.
                return highest_floor, [post for post in posts if post.id > highest_floor]
            left = Range(entries[-1].post_id, left.high)

    def _entries(self, towards: _Direction, wanted: Range, limit: int) -> tuple[int, list[_Entry]]:
        """Return the floor, and up to `limit` entries above it."""
        # Not "above low": PostgreSQL would plan for the partition that `low` is in.
        values = {
            "user": self.user_id,
            "limit": limit,
            "first": min(wanted.low + 1, MAX_ID),
            "high": wanted.high,
        }
        rows = fetch(_PUSHED.format(direction=towards.direction), values)
        self.floor, self._is_to_note, starts, self.seen = rows[0][:4]
        Reader._starts = starts or ()
        return self.floor or 0, [_Entry.of(*row[4:]) for row in rows if row[4] is not None]

    def _nearest(
        self, towards: _Direction, authors: str, kind: str, wanted: Range, limit: int
    ) -> list[PostRow]:
        statement = _NEAREST.format(authors=authors, kind=kind, **towards._asdict())
        values = {"user": self.user_id, "limit": limit, **wanted._asdict()}
        if authors is _GIVEN:
            values["authors"] = self.pulled_authors()
        return [PostRow(*row) for row in fetch(statement, values)]
