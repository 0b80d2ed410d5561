"""What the live streams of a process are told: which posts are new in each of their feeds.

Two threads, both on one cell, work for all streams of its readers. One hears what workers announce,
which says all that a stream has to know of a new post. The other counts feeds in PostgreSQL, 500 in
a question: when a stream is opened, when its feed has changed otherwise, after each gap in what was
heard, and all of them now and then, often while nothing is announced. The streams themselves are on
the event loop.
"""

import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import structlog
from django import db
from redis import Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from eventbus.database.current import connection
from eventbus.database.sql import bigints, fetch
from feeds import announcements
from feeds.announcements import Change
from feeds.models import HORIZON, PULLED_BY, RESTING
from feeds.read import here
from feeds.read.era import Era, pool_like
from feeds.timeline import Reader, newest_partitions_begin_after
from posts import pagination
from posts.models import PULLED, PUSHED

MOST_COUNTED = 100
NEWEST_LOOKED_AT = 10
FEEDS_A_QUESTION = 500
HEAR_SECONDS = 0.1
CONFIRM_SECONDS = 0.5
WAIT_SECONDS = 0.5
PAUSE_SECONDS = 0.5
POLL_SECONDS = 5.0
# Nothing should be amiss by then. If it is, this bounds for how long; and it is how streams learn
# of authors who have come to be pulled, before `FEED_CACHE_MAX_TTL` is over.
RECOUNT_SECONDS = 300.0

# The posts above the floor that are newer than `since`: pushed ones by their rows, pulled ones by
# their authors; where `since` is none, the newest few above `lowest`. Where it is below the floor
# the feed has to be read. `OFFSET 0` has each post looked up by its key, in the order of the
# entries and only until there are enough, whatever statistics say.
_NEWER = f"""
SELECT asked.user_id, asked.since, state.floor <= bounds.after, bounds.after, newer.ids,
    pulled.authors, state.seen
FROM unnest(%(users)s::bigint[], %(sinces)s::bigint[]) AS asked (user_id, since)
CROSS JOIN LATERAL (
    SELECT greatest(
        (SELECT floor FROM feeds WHERE feeds.user_id = asked.user_id), {HORIZON}
    ) AS floor, (SELECT seen_post_id FROM feeds WHERE feeds.user_id = asked.user_id) AS seen
) AS state
CROSS JOIN LATERAL (
    SELECT coalesce(asked.since, greatest(state.floor, %(lowest)s)) AS after,
        CASE WHEN asked.since IS NULL THEN {NEWEST_LOOKED_AT} ELSE {MOST_COUNTED} END AS most
) AS bounds
CROSS JOIN LATERAL (
    SELECT ARRAY({PULLED_BY.format(user="asked.user_id")}) AS authors
) AS pulled
CROSS JOIN LATERAL (
    SELECT ARRAY(
        (SELECT post.id FROM feed_entries AS entry
         CROSS JOIN LATERAL (SELECT * FROM posts WHERE id = post_id OFFSET 0) AS post
         WHERE {PUSHED} AND entry.user_id = asked.user_id AND entry.post_id > bounds.after
           AND entry.post_id >= %(lowest)s + 1 AND state.floor <= bounds.after
         ORDER BY entry.post_id DESC LIMIT bounds.most)
        UNION ALL
        (SELECT near.id FROM unnest(pulled.authors) AS author
         CROSS JOIN LATERAL (
             SELECT id FROM posts
             WHERE author_id = author AND {PULLED}
               AND id > bounds.after AND state.floor <= bounds.after
             ORDER BY id DESC LIMIT bounds.most
         ) AS near
         ORDER BY near.id DESC LIMIT bounds.most)
    ) AS ids
) AS newer
"""  # noqa: S608 - composed of constants

log = structlog.get_logger(__name__)


class Wanted(NamedTuple):
    """Whose feed, and the post after which others are new; None: those that come from now on."""

    user_id: int
    since: int | None


class Found(NamedTuple):
    """What PostgreSQL has of a feed."""

    after: int  # `since`, or without it an id after which a few of the newest are looked for
    post_ids: Sequence[int]  # those after it, the newest 100 or few, newest first
    pulled_authors: Sequence[int]  # whose posts have to be looked for, in order
    seen: int | None  # up to which post its user has seen it; None: never said
    unread_ids: Sequence[int] = ()  # the newest after that, at most 100


class NewPosts:
    """The posts after `since`, counted up to 100; each once, however often it is told of."""

    __slots__ = ("_ids", "newest_id", "since")

    def __init__(self, since: int) -> None:
        self.since = since
        self.newest_id: int | None = None
        self._ids = array("q")

    def add(self, post_ids: Iterable[int]) -> bool:
        """Add posts; return whether one of them was new."""
        added = False
        for post_id in post_ids:
            if post_id > self.since and self._is_new(post_id):
                self.newest_id = max(post_id, self.newest_id or 0)
                added = True
        return added

    def _is_new(self, post_id: int) -> bool:
        if len(self._ids) == MOST_COUNTED:
            # All that can still change is which is the newest.
            return post_id > (self.newest_id or 0)
        if post_id in self._ids:
            return False
        self._ids.append(post_id)
        return True

    @property
    def count(self) -> int:
        return len(self._ids)

    def to_json(self) -> dict[str, Any]:
        """Return what an event `new` says."""
        newest = None if self.newest_id is None else str(self.newest_id)
        return {"newest_id": newest, "count": self.count}


class Streams(Protocol):
    """The open streams of a cell in a process; all is called in the threads that hear and count."""

    def open_feeds(self) -> set[int]:
        """Return the users whose feeds have streams."""

    def announced(self, changes: Sequence[Change]) -> None:
        """Hear of changes; of their users, only those with streams are named."""

    def missed(self) -> None:
        """Hear that anything may have changed: all feeds are to be counted."""

    def heard(self, is_hearing: bool) -> None:
        """Hear whether changes are being announced."""

    def found(self, found: dict[Wanted, Found], asked_at: float) -> None:
        """Hear what feeds have, which was asked at that time (monotonic) or later."""


class Hearing:
    """Hears what is announced, in a thread that calls `turn` again and again, then `close`."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._pubsub: Any = None
        self._subscribed_to: str | None = None
        self._era: str | None = None
        self._counted_all_at = 0.0

    def turn(self) -> None:
        """Hear for a moment what has changed. Never fails."""
        try:
            self._hear()
            self._have_all_counted_when_due()
        except Exception:
            log.exception("live_feeds_failed")
            self.close()
            time.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        """Hear nothing more."""
        pubsub, self._pubsub, self._subscribed_to = self._pubsub, None, None
        if pubsub is not None:
            pubsub.close()

    @property
    def _is_hearing(self) -> bool:
        return self._era is not None and self._era == self._subscribed_to

    def _hear(self) -> None:
        message = None
        try:
            self._look_at_the_era()
            message = self._next_message()
        except (RedisError, OSError) as error:
            log.warning("live_feeds_not_heard", error=str(error))
            self.close()
            time.sleep(PAUSE_SECONDS)
        self._streams.heard(self._is_hearing)
        if message is not None:
            self._hand_on(announcements.changes_in(message["data"]))

    def _look_at_the_era(self) -> None:
        era = here.trust.now()
        name = era.name if era else None
        if name != self._era:
            self._era = name
            self._counted_all_at = 0.0  # what was announced in between is not known
        # While none counts the subscription stays: it may be the same again in a moment.
        if era is not None and era.name != self._subscribed_to:
            self._subscribe(era)

    def _subscribe(self, era: Era) -> None:
        """Hear the Redis that counts, and not the one that did before, which may answer still."""
        self.close()
        made = pool_like(era.redis.connection_pool, health_check_interval=1)
        self._pubsub = Redis(connection_pool=made).pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(announcements.channel_of(era.name))
        # What is announced from now on is heard, and all feeds are counted after it.
        if self._pubsub.get_message(timeout=CONFIRM_SECONDS) is None:
            raise RedisConnectionError("Redis did not confirm the subscription.")
        self._subscribed_to = era.name
        self._counted_all_at = 0.0

    def _next_message(self) -> Any:
        if self._pubsub is None:
            time.sleep(HEAR_SECONDS)
            return None
        return self._pubsub.get_message(timeout=HEAR_SECONDS)

    def _hand_on(self, changes: Iterable[Change]) -> None:
        # Not before the message is here: who opens a stream later is counted later too.
        open_feeds = self._streams.open_feeds()
        concerning = [
            Change(open_feeds.intersection(change.user_ids), change.pulled_from, change.post_ids)
            for change in changes
        ]
        wanted = [change for change in concerning if change.user_ids or change.pulled_from]
        if wanted:
            self._streams.announced(wanted)

    def _have_all_counted_when_due(self) -> None:
        every = RECOUNT_SECONDS if self._is_hearing else POLL_SECONDS
        if self._counted_all_at == 0.0 or time.monotonic() - self._counted_all_at > every:
            self._counted_all_at = time.monotonic()
            self._streams.missed()


class Counting:
    """Counts feeds, in a thread that calls `turn` again and again."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._due: set[Wanted] = set()
        self._changing = threading.Lock()
        self._asked = threading.Event()

    def ask(self, wanted: Iterable[Wanted]) -> None:
        """Have feeds counted; from any thread."""
        with self._changing:
            self._due.update(wanted)
        self._asked.set()

    def turn(self) -> None:
        """Count what is due, or wait a moment for something to be. Never fails."""
        if not self._asked.wait(WAIT_SECONDS):
            return
        self._asked.clear()
        with self._changing:
            due, self._due = list(self._due), set()
        try:
            while due:
                asked_at = time.monotonic()
                self._streams.found(find(due[:FEEDS_A_QUESTION]), asked_at)
                del due[:FEEDS_A_QUESTION]
        except db.Error as error:
            log.warning("live_feeds_not_counted", error=str(error))
            time.sleep(PAUSE_SECONDS)
        except Exception:
            log.exception("live_feeds_failed")
            time.sleep(PAUSE_SECONDS)
        finally:
            if due:
                self.ask(due)
            connection.close()


def find(wanted: Sequence[Wanted]) -> dict[Wanted, Found]:
    """Return what these feeds have, by two queries, a third for those of which more is unread, and
    more for each that reaches below its floor.

    Raises `DatabaseError`.
    """
    found = _find(wanted)
    marked = {one: its for one, its in found.items() if its.seen is not None}
    further = {
        one: Wanted(one.user_id, its.seen) for one, its in marked.items() if not _reaches(one, its)
    }
    unread = _find(list(set(further.values())))
    for one, its in marked.items():
        source = unread[further[one]] if one in further else its
        unread_ids = [post_id for post_id in source.post_ids if post_id > (its.seen or 0)]
        found[one] = its._replace(post_ids=_with_later(one, its, source), unread_ids=unread_ids)
    return found


def _with_later(wanted: Wanted, found: Found, later: Found) -> Sequence[int]:
    """Return the new posts, with those that only the later question found: they are as new as they
    are unread.
    """
    if wanted.since is None:
        return found.post_ids  # what comes from now on is new, and is announced
    ids = {*found.post_ids, *(post_id for post_id in later.post_ids if post_id > wanted.since)}
    return sorted(ids, reverse=True)[:MOST_COUNTED]


def _reaches(wanted: Wanted, found: Found) -> bool:
    """Tell whether all that is unread, or a hundred of it, is among the posts that were found."""
    seen = found.seen or 0
    if wanted.since is not None and wanted.since <= seen:
        return True
    if len(found.post_ids) == MOST_COUNTED:
        return True
    # Of those further down some may be missing: without `since` no more were looked for.
    newest = found.post_ids[:NEWEST_LOOKED_AT]
    return bool(newest) and newest[-1] <= seen


def _find(wanted: Sequence[Wanted]) -> dict[Wanted, Found]:
    opened = [one for one in wanted if one.since is None]
    known = [one for one in wanted if one.since is not None]
    found = _newer(opened, newest_partitions_begin_after()) | _newer(
        known, min(_sinces(known), default=0)
    )
    for one in wanted:
        if one not in found:
            found[one] = _read(one)
    return found


def _sinces(wanted: Iterable[Wanted]) -> Iterator[int]:
    return (one.since for one in wanted if one.since is not None)


def _newer(wanted: Sequence[Wanted], lowest: int) -> dict[Wanted, Found]:
    """Return what can be found above the floors, by one query."""
    if not wanted:
        return {}
    sinces = ",".join("NULL" if one.since is None else str(one.since) for one in wanted)
    values = {
        "users": bigints(one.user_id for one in wanted),
        "sinces": f"{{{sinces}}}",
        "lowest": lowest,
    }
    found: dict[Wanted, Found] = {}
    for user_id, since, is_above_floor, after, post_ids, authors, seen in fetch(_NEWER, values):
        # Nothing is materialised of a feed that rests.
        if is_above_floor and after < RESTING:
            newest = sorted(post_ids, reverse=True)[:MOST_COUNTED]
            found[Wanted(user_id, since)] = Found(after, newest, sorted(authors), seen)
    return found


def _read(wanted: Wanted) -> Found:
    reader = Reader(wanted.user_id)
    limit = NEWEST_LOOKED_AT if wanted.since is None else MOST_COUNTED
    rows = reader.read(pagination.START, limit)
    reader.note()
    since = wanted.since or 0
    post_ids = [row.id for row in rows if row.id > since]
    return Found(since, post_ids, sorted(reader.pulled_authors()), reader.seen)
