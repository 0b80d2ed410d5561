"""What the live streams of a process wait for: how many posts are new in each of their feeds.

One thread hears what workers announce and counts for all streams together, so that an announcement
which concerns thousands of them is a few questions to PostgreSQL. What is announced while it counts
waits in Redis' buffer and is counted together afterwards. While the cache cannot be trusted, or
Redis is away, it counts all feeds now and then.
"""

import threading
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import structlog
from django import db
from django.db import connection
from redis import Redis, RedisError

from eventbus.database.sql import bigints, fetch
from feeds import announcements
from feeds.models import HORIZON, IN_FEED
from feeds.read import here
from feeds.read.era import connection_pool, pool_like
from feeds.timeline import Reader
from posts import pagination
from posts.models import PULLED

MOST_COUNTED = 100
FEEDS_A_QUESTION = 500
HEAR_SECONDS = 0.1
POLL_SECONDS = 5.0
PAUSE_SECONDS = 0.5

# The posts above the floor that are newer than `since`: pushed ones by their rows, pulled ones by
# their authors. Where `since` is below the floor there is no count, and the feed has to be read.
_COUNT = f"""
SELECT asked.user_id, asked.since, state.floor <= asked.since, found.count, found.newest
FROM unnest(%(users)s::bigint[], %(sinces)s::bigint[]) AS asked(user_id, since)
CROSS JOIN LATERAL (
    SELECT greatest(
        (SELECT floor FROM feeds WHERE feeds.user_id = asked.user_id), {HORIZON}
    ) AS floor
) AS state
CROSS JOIN LATERAL (
    SELECT count(*) AS count, max(id) AS newest FROM (
        (SELECT post.id FROM feed_entries AS entry
         JOIN posts AS post ON post.id = entry.post_id
             AND post.deleted_event_id IS NULL AND post.fanout = 0
         WHERE entry.user_id = asked.user_id AND entry.post_id > asked.since
           AND entry.post_id > %(lowest)s AND state.floor <= asked.since
         ORDER BY entry.post_id DESC LIMIT {MOST_COUNTED})
        UNION ALL
        (SELECT near.id FROM (
             SELECT followee_id AS author FROM follows
             JOIN feeds ON feeds.user_id = followee_id AND pulled_since IS NOT NULL
             WHERE follower_id = asked.user_id AND {IN_FEED}
             UNION ALL
             SELECT feeds.user_id FROM feeds
             WHERE feeds.user_id = asked.user_id AND pulled_since IS NOT NULL
         ) AS authors
         CROSS JOIN LATERAL (
             SELECT id FROM posts
             WHERE author_id = author AND {PULLED}
               AND id > asked.since AND state.floor <= asked.since
             ORDER BY id DESC LIMIT {MOST_COUNTED}
         ) AS near
         ORDER BY near.id DESC LIMIT {MOST_COUNTED})
    ) AS newer
) AS found
"""  # noqa: S608 - composed of constants

_READERS_OF = f"""
SELECT reader FROM unnest(%(users)s::bigint[]) AS reader
WHERE reader = ANY(%(authors)s::bigint[]) OR EXISTS (
    SELECT FROM unnest(%(authors)s::bigint[]) AS author
    JOIN follows ON follower_id = reader AND followee_id = author AND {IN_FEED}
)
"""  # noqa: S608 - composed of constants

log = structlog.get_logger(__name__)


class Wanted(NamedTuple):
    """Whose feed, and the post after which others are new; None: those that come from now on."""

    user_id: int
    since: int | None


class Count(NamedTuple):
    """How many posts are newer than `since`, at most 100, and the newest of them."""

    since: int
    number: int
    newest_id: int | None


class Streams(Protocol):
    """Who is told; all is called in the thread that counts."""

    def wanted(self, user_ids: Collection[int] | None) -> list[Wanted]:
        """Return what is wanted of these feeds; None: of all."""

    def open_feeds(self) -> set[int]:
        """Return the users whose feeds have streams."""

    def counted(self, counts: dict[Wanted, Count], announced: bool, asked_at: float) -> None:
        """Hear the counts, asked for at a monotonic time, and whether a change was announced."""

    def heard(self, is_hearing: bool) -> None:
        """Hear whether changes are being announced."""


class LiveCounts:
    """Counts for the streams of one process, in one thread that calls `turn` again and again, then
    `close`.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._opened: set[int] = set()
        self._changed: set[int] = set()
        self._authors: set[int] = set()
        self._changing = threading.Lock()
        self._pubsub: Any = None
        self._era: str | None = None
        self._counted_all_at = 0.0

    def opened(self, user_id: int) -> None:
        """Have the feed counted because a stream was opened; from any thread."""
        with self._changing:
            self._opened.add(user_id)

    def turn(self) -> None:
        """Hear for a moment what has changed, and count what is due. Never fails."""
        try:
            self._hear()
            self._count_what_is_due()
        except db.Error as error:
            log.warning("live_feeds_not_counted", error=str(error))
            time.sleep(PAUSE_SECONDS)
        except Exception:
            log.exception("live_feeds_failed")
            time.sleep(PAUSE_SECONDS)
        finally:
            connection.close()

    def close(self) -> None:
        """Hear nothing more."""
        self._unsubscribe()

    def _hear(self) -> None:
        try:
            if self._pubsub is None:
                self._subscribe()
            self._take(HEAR_SECONDS)
        except (RedisError, OSError) as error:
            log.warning("live_feeds_not_heard", error=str(error))
            self._unsubscribe()
            time.sleep(PAUSE_SECONDS)
        now = here.trust.now() if self._pubsub is not None else None
        era = now.name if now else None
        if era != self._era:
            if era is not None and self._era is not None:
                self._unsubscribe()  # another Redis may count now
            self._era = era
            self._counted_all_at = 0.0  # what was announced in between is not known
        self._streams.heard(era is not None)

    def _subscribe(self) -> None:
        made = pool_like(connection_pool(), health_check_interval=1)
        pubsub = Redis(connection_pool=made).pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(announcements.FEEDS, announcements.AUTHORS)
        self._pubsub = pubsub
        self._counted_all_at = 0.0

    def _unsubscribe(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()

    def _take(self, seconds: float) -> None:
        """Take note of all that was announced, waiting up to `seconds` for the first of it."""
        deadline = time.monotonic() + PAUSE_SECONDS
        message = self._pubsub.get_message(timeout=seconds)
        open_feeds = self._streams.open_feeds()
        while message is not None and time.monotonic() < deadline:
            ids = announcements.ids_in(message["data"])
            if message["channel"] == announcements.AUTHORS:
                self._authors.update(ids)
            else:
                self._changed |= open_feeds.intersection(ids)
            message = self._pubsub.get_message(timeout=0)

    def _count_what_is_due(self) -> None:
        every = POLL_SECONDS if self._era is None else float("inf")
        if self._counted_all_at == 0.0 or time.monotonic() - self._counted_all_at > every:
            self._count(None, announced=False)
            self._counted_all_at = time.monotonic()
        if self._authors:
            self._changed |= self._readers_of(self._authors)
            self._authors.clear()
        if self._changed:
            self._count(self._changed, announced=True)
            self._changed = set()
        with self._changing:
            opened, self._opened = self._opened, set()
        if opened:
            try:
                self._count(opened, announced=False)
            except db.Error:
                with self._changing:
                    self._opened |= opened
                raise

    def _readers_of(self, authors: Collection[int]) -> set[int]:
        users = list(self._streams.open_feeds())
        found: set[int] = set()
        for start in range(0, len(users), FEEDS_A_QUESTION):
            part = users[start : start + FEEDS_A_QUESTION]
            values = {"users": bigints(part), "authors": bigints(authors)}
            found.update(reader for (reader,) in fetch(_READERS_OF, values))
        return found

    def _count(self, user_ids: Collection[int] | None, *, announced: bool) -> None:
        wanted = self._streams.wanted(user_ids)
        for start in range(0, len(wanted), FEEDS_A_QUESTION):
            asked_at = time.monotonic()
            counts = count(wanted[start : start + FEEDS_A_QUESTION])
            self._streams.counted(counts, announced, asked_at)


def count(wanted: Sequence[Wanted]) -> dict[Wanted, Count]:
    """Return the counts of these feeds, by one query, and one more for each that reaches below its
    floor.
    """
    known = [one for one in wanted if one.since is not None]
    counts: dict[Wanted, Count] = {}
    for user_id, since, is_above_floor, number, newest in _above_floors(known):
        if is_above_floor:
            counts[Wanted(user_id, since)] = Count(since, min(number, MOST_COUNTED), newest)
    for one in wanted:
        if one not in counts:
            counts[one] = _read(one)
    return counts


def _above_floors(known: Sequence[Wanted]) -> list[tuple[Any, ...]]:
    sinces = [one.since for one in known if one.since is not None]
    if not sinces:
        return []
    values = {
        "users": bigints(one.user_id for one in known),
        "sinces": bigints(sinces),
        "lowest": min(sinces),
    }
    return fetch(_COUNT, values)


def _read(wanted: Wanted) -> Count:
    reader = Reader(wanted.user_id)
    rows = reader.read(pagination.START, MOST_COUNTED if wanted.since is not None else 1)
    reader.note()
    newest = rows[0].id if rows else None
    if wanted.since is None:
        return Count(newest or 0, 0, None)
    number = sum(1 for row in rows if row.id > wanted.since)
    return Count(wanted.since, number, newest if number else None)
