"""Erasing a user: nothing they did before counts any more, and what is held of it goes, bit by bit.

The event leaves a mark in `erasures`. From then on nothing from before it has an effect, whenever
it comes: a post is stored as a tombstone, a follow not at all. What there was is then taken away by
the workers' housekeepers, `STEPS` in turn: each a bounded transaction under the user's lock, so
that other events of the user pass in between. A worker that dies leaves the erasure to the next:
each part may be repeated, and a step counts as done only once the pages it changes are void.

What the user does afterwards counts like anybody's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from eventbus import metrics
from eventbus.database import locks
from eventbus.database.current import atomic
from eventbus.database.sql import bigints, execute, fetch
from eventbus.deadletters import erasing
from eventbus.ids import clock
from eventbus.ids.snowflake import milliseconds_of
from feeds import blocks, fanout, follows, mutes
from feeds.announcements import Change
from feeds.events import UserErased
from feeds.models import HORIZON, RESTING, Feed
from feeds.read import here
from posts.models import ALIVE, PULLED, Fanout

# A part whose worker died is taken up by another after so long.
TURN_SECONDS = 5
WAIT_SECONDS = 1

ROWS = 1_000
PAIRS = 100  # each needs the lock of a user
WALKED = 20_000  # rows that are looked at by their key, for there is no index by user
DEAD_LETTERS = 200  # of which each may be a megabyte

_REGISTER = """
INSERT INTO erasures (user_id, event_id, step)
SELECT user_id, max(event_id), %s FROM unnest(%s::bigint[], %s::bigint[]) AS new (user_id, event_id)
GROUP BY 1 ORDER BY 1
ON CONFLICT (user_id) DO UPDATE SET
    event_id = EXCLUDED.event_id, step = EXCLUDED.step, resume_after = 0, due_at = now(),
    finished_at = NULL
WHERE erasures.event_id < EXCLUDED.event_id
RETURNING user_id
"""
# The feed rests: what is stored of it is read by nobody, and nothing is added to it.
_PUT_TO_REST = """
WITH resting AS (
    UPDATE feeds SET idle = true, floor = %(resting)s, rebuild_wanted = false, last_read_at = now(),
        seen_post_id = CASE WHEN seen_post_id > event_id THEN seen_post_id END
    FROM erasures
    WHERE feeds.user_id = ANY(%(users)s::bigint[]) AND erasures.user_id = feeds.user_id
)
UPDATE follows SET idle = true WHERE follower_id = ANY(%(users)s::bigint[]) AND NOT idle
"""

_CLAIM = """
UPDATE erasures SET due_at = now() + %s * interval '1 second'
WHERE user_id = (
    SELECT user_id FROM erasures WHERE finished_at IS NULL AND due_at <= now()
    ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING user_id, event_id, step, resume_after
"""
_ADVANCE = """
UPDATE erasures SET step = %(next)s, resume_after = %(last)s,
    due_at = now() + %(pause)s * interval '1 second',
    finished_at = CASE WHEN %(finished)s THEN now() END
WHERE user_id = %(user)s AND event_id = %(event)s AND step = %(step)s AND resume_after = %(after)s
"""
_OLDEST = "SELECT min(event_id) FROM erasures WHERE finished_at IS NULL"

# Those that were pushed are withdrawn from feeds like any that is deleted.
_BURY = f"""
WITH part AS MATERIALIZED (
    SELECT id, fanout FROM posts
    WHERE author_id = %(user)s AND {ALIVE} AND id < %(event)s AND id > %(after)s
    ORDER BY id LIMIT %(limit)s
), buried AS (
    UPDATE posts SET content = '', data = NULL, content_event_id = NULL, data_event_id = NULL,
        deleted_event_id = %(event)s
    WHERE id = ANY(ARRAY(SELECT id FROM part))
), to_withdraw AS (
    INSERT INTO withdrawals (post_id, author_id)
    SELECT id, %(user)s FROM part WHERE fanout = {Fanout.PUSH} AND id > {HORIZON} ORDER BY 1
    ON CONFLICT DO NOTHING
)
SELECT count(*), coalesce(max(id), 0) FROM part
"""  # noqa: S608 - composed of constants
_DROP_WAITING_EDITS = """
DELETE FROM waiting_edits WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM waiting_edits WHERE author_id = %(user)s AND post_id < %(event)s LIMIT %(limit)s
))
"""
_IS_WITHDRAWING = """
SELECT EXISTS (SELECT FROM withdrawals WHERE author_id = %(user)s AND post_id < %(event)s)
"""
_FOLLOWERS = """
SELECT follower_id FROM follows WHERE followee_id = %(user)s AND active AND follower_id > %(after)s
ORDER BY follower_id LIMIT %(limit)s
"""
_FORMER_FOLLOWERS = """
SELECT follower_id FROM follows WHERE followee_id = %(user)s AND NOT active AND follower_id > %(after)s
ORDER BY follower_id LIMIT %(limit)s
"""
_FOLLOWED = """
SELECT followee_id FROM follows WHERE follower_id = %(user)s AND followee_id > %(after)s
ORDER BY followee_id LIMIT %(limit)s
"""
_MUTED = """
SELECT muted_id FROM mutes WHERE user_id = %(user)s AND muted_id > %(after)s
ORDER BY muted_id LIMIT %(limit)s
"""
_MUTED_BY = """
SELECT user_id FROM mutes WHERE muted_id = %(user)s AND user_id > %(after)s
ORDER BY user_id LIMIT %(limit)s
"""
_BLOCKED = """
SELECT blocked_id FROM blocks WHERE blocker_id = %(user)s AND blocked_id > %(after)s
ORDER BY blocked_id LIMIT %(limit)s
"""
_LOCK_FLOOR = "SELECT floor FROM feeds WHERE user_id = %(user)s FOR UPDATE"
_UNREAD_ENTRIES = """
SELECT post_id FROM feed_entries
WHERE user_id = %(user)s AND post_id > %(after)s AND post_id <= %(floor)s
ORDER BY post_id LIMIT %(limit)s
"""
# Who writes there asks for the mark only when they hold the lock of the table. So whoever may have
# missed it holds the lock since before now, and whoever comes later sees it.
_WRITING = """
SELECT EXISTS (
    SELECT FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
      AND relation IN ('idempotency_keys'::regclass, 'dead_letters'::regclass)
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND pid <> pg_backend_pid()
      AND coalesce(xact_start <= to_timestamp(%(since)s / 1000.0), true)
), (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1
"""
_DELETE_KEYS = """
DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM idempotency_keys WHERE user_id = %(user)s AND event_id < %(event)s LIMIT %(limit)s
))
"""
_FORGET_ACTOR = """
WITH chunk AS MATERIALIZED (
    SELECT event_id, actor_id FROM processed_events
    WHERE event_id > %(after)s AND event_id < %(event)s ORDER BY event_id LIMIT %(limit)s
), forgotten AS (
    UPDATE processed_events SET actor_id = NULL
    WHERE event_id = ANY(ARRAY(SELECT event_id FROM chunk WHERE actor_id = %(user)s))
)
SELECT count(*), coalesce(max(event_id), 0) FROM chunk
"""
_RESET_FEED = f"""
UPDATE feeds SET pulled_since = NULL
WHERE user_id = %(user)s AND follower_count = 0 AND pulled_since IS NOT NULL
  AND NOT EXISTS (SELECT FROM posts WHERE author_id = %(user)s AND {PULLED})
"""  # noqa: S608 - composed of constants

log = structlog.get_logger(__name__)


class Place(NamedTuple):
    """How far an erasure has come."""

    user_id: int
    event_id: int
    step: str
    resume_after: int

    def values(self, limit: int) -> dict[str, int]:
        """Return what the statements of a step ask for."""
        return {
            "user": self.user_id,
            "event": self.event_id,
            "after": self.resume_after,
            "limit": limit,
        }


class Part(NamedTuple):
    """What a part of a step has done."""

    last: int  # the last key it has dealt with
    is_last: bool
    users: Sequence[int] = ()  # whose cached pages it has changed
    of_author: bool = False  # or those of everybody who may see the user's posts
    has_to_wait: bool = False


def apply(facts: Sequence[UserErased]) -> None:
    """Leave the marks of the erasures, and have all else done by `erase_part`.

    Needs the locks of the users, and their rows in `feeds`.
    """
    columns = [bigints(fact.user_id for fact in facts), bigints(fact.event_id for fact in facts)]
    users = [user for (user,) in fetch(_REGISTER, [FIRST, *columns])]
    if users:
        execute(_PUT_TO_REST, {"users": bigints(users), "resting": RESTING})


def erase_part() -> bool:
    """Do the next part of an erasure that nobody is at; return whether there was one.

    Raises `DatabaseError`; the part is then done again.
    """
    place = _claim()
    if place is None:
        return False
    with atomic():
        part = STEPS[place.step](place)
    # Before the place moves on: who takes over after a crash voids them again.
    _void(place.user_id, part)
    _advance(place, part)
    return True


def oldest_seconds() -> float:
    """Return how long ago the oldest erasure that is not finished was asked for, 0 if there is
    none.
    """
    [(event_id,)] = fetch(_OLDEST)
    if event_id is None:
        return 0.0
    return max(0.0, (clock.now_ms() - milliseconds_of(event_id)) / 1_000)


def _claim() -> Place | None:
    for user_id, event_id, step, resume_after in fetch(_CLAIM, [TURN_SECONDS]):
        # One that is not known is that of a newer worker, who goes on with it.
        if step in STEPS:
            return Place(user_id, event_id, step, resume_after)
    return None


def _advance(place: Place, part: Part) -> None:
    names = list(STEPS)
    at = names.index(place.step)
    is_finished = part.is_last and at == len(names) - 1
    moved = {
        "next": names[at + 1] if part.is_last and not is_finished else place.step,
        "last": 0 if part.is_last else part.last,
        "pause": WAIT_SECONDS if part.has_to_wait else 0,
        "finished": is_finished,
    }
    here_now = {
        "user": place.user_id,
        "event": place.event_id,
        "step": place.step,
        "after": place.resume_after,
    }
    if execute(_ADVANCE, {**moved, **here_now}) and is_finished:
        metrics.erasures_finished_total.inc()
        log.info("user_erased", event_id=place.event_id)


def _void(user_id: int, part: Part) -> None:
    if part.of_author:
        watched, by_every_page, _ = Feed.objects.watched_among({user_id})
        if by_every_page:
            here.pages.invalidate([user_id], watched, [Change([user_id], user_id)])
            return
        for audience in follows.audience([user_id]):
            here.pages.invalidate(audience[user_id], watched)
    elif part.users:
        here.pages.invalidate(part.users)


# The steps. Each is called within a transaction, takes the locks it needs in one go, and does at
# most so many rows.


def _leave_tombstones(place: Place) -> Part:
    locks.acquire_keys([place.user_id])
    [(count, last)] = fetch(_BURY, place.values(ROWS))
    return Part(last, count < ROWS, of_author=True)


def _drop_waiting_edits(place: Place) -> Part:
    locks.acquire_keys([place.user_id])
    return Part(0, execute(_DROP_WAITING_EDITS, place.values(ROWS)) < ROWS)


def _await_withdrawals(place: Place) -> Part:
    # `fanout.withdraw_part` finds by their follows whose feeds they are in, so these go later.
    [(is_withdrawing,)] = fetch(_IS_WITHDRAWING, place.values(ROWS))
    return Part(0, not is_withdrawing, has_to_wait=is_withdrawing)


def _forget_followers(place: Place) -> Part:
    return _forget_audience(place, _FOLLOWERS)


def _forget_former_followers(place: Place) -> Part:
    return _forget_audience(place, _FORMER_FOLLOWERS)


def _forget_audience(place: Place, statement: str) -> Part:
    locks.acquire_keys([place.user_id])
    followers = [user for (user,) in fetch(statement, place.values(PAIRS))]
    follows.lock_feeds([place.user_id, *followers])
    follows.forget([(follower, place.user_id) for follower in followers], place.event_id)
    return _part_of(followers, PAIRS, users=followers)


def _forget_followed(place: Place) -> Part:
    # Each followee's lock is needed too: a post on its way to this feed would be missed.
    followees = [user for (user,) in fetch(_FOLLOWED, place.values(PAIRS))]
    locks.acquire_keys([place.user_id, *followees])
    follows.lock_feeds([place.user_id, *followees])
    follows.forget([(place.user_id, followee) for followee in followees], place.event_id)
    return _part_of(followees, PAIRS, users=[place.user_id])


def _forget_muted(place: Place) -> Part:
    muted = [user for (user,) in fetch(_MUTED, place.values(PAIRS))]
    locks.acquire_keys([place.user_id, *muted])
    follows.lock_feeds([place.user_id, *muted])
    mutes.forget([(place.user_id, user) for user in muted], place.event_id)
    return _part_of(muted, PAIRS, users=[place.user_id])


def _forget_muting(place: Place) -> Part:
    locks.acquire_keys([place.user_id])
    muting = [user for (user,) in fetch(_MUTED_BY, place.values(PAIRS))]
    follows.lock_feeds([place.user_id, *muting])
    mutes.forget([(user, place.user_id) for user in muting], place.event_id)
    return _part_of(muting, PAIRS, users=muting)


def _forget_blocked(place: Place) -> Part:
    # Only those by the user: nobody is rid of another's block by being erased. A block is under the
    # locks of both.
    others = [user for (user,) in fetch(_BLOCKED, place.values(PAIRS))]
    locks.acquire_keys([place.user_id, *others])
    follows.lock_feeds([place.user_id, *others])
    blocks.forget([(place.user_id, other) for other in others], place.event_id)
    return _part_of(others, PAIRS, users=[place.user_id, *others])


def _delete_entries(place: Place) -> Part:
    """Delete the rows of the user's own feed that nobody reads: all, unless it was built anew."""
    locks.acquire_keys([place.user_id])
    values = place.values(ROWS)
    floors = fetch(_LOCK_FLOOR, values)
    values["floor"] = floors[0][0] if floors else RESTING
    execute("SET LOCAL enable_seqscan = off")
    posts = [post for (post,) in fetch(_UNREAD_ENTRIES, values)]
    fanout.remove([(place.user_id, post) for post in posts])
    return _part_of(posts, ROWS)


def _await_writers(place: Place) -> Part:
    """Wait for those who write idempotency keys and dead letters and may not have seen the mark:
    they take no lock of the user's.

    The time at which they were first looked for is kept as the key.
    """
    [(is_writing, now_ms)] = fetch(_WRITING, {"since": place.resume_after or None})
    return Part(place.resume_after or now_ms, not is_writing, has_to_wait=is_writing)


def _delete_idempotency_keys(place: Place) -> Part:
    locks.acquire_keys([place.user_id])
    return Part(0, execute(_DELETE_KEYS, place.values(ROWS)) < ROWS)


def _forget_actor(place: Place) -> Part:
    locks.acquire_keys([place.user_id])
    [(count, last)] = fetch(_FORGET_ACTOR, place.values(WALKED))
    return Part(last, count < WALKED)


def _delete_dead_letters(place: Place) -> Part:
    walked = erasing.erase(
        place.user_id, before=place.event_id, after=place.resume_after, limit=DEAD_LETTERS
    )
    return Part(walked.last, walked.rows < DEAD_LETTERS)


def _reset_feed(place: Place) -> Part:
    locks.acquire_keys([place.user_id])
    execute(_RESET_FEED, place.values(1))
    return Part(0, is_last=True, users=[place.user_id])


def _part_of(keys: Sequence[int], limit: int, *, users: Sequence[int] = ()) -> Part:
    return Part(keys[-1] if keys else 0, len(keys) < limit, users)


# In this order; an erasure under way keeps the name of its step, so one may be put in between.
STEPS: dict[str, Callable[[Place], Part]] = {
    "posts": _leave_tombstones,
    "waiting edits": _drop_waiting_edits,
    "withdrawals": _await_withdrawals,
    "followers": _forget_followers,
    "former followers": _forget_former_followers,
    "followed": _forget_followed,
    # After follows, so that nothing comes back that goes then.
    "muted": _forget_muted,
    "muted by": _forget_muting,
    "blocked": _forget_blocked,
    "entries": _delete_entries,
    "writers": _await_writers,
    "idempotency keys": _delete_idempotency_keys,
    "processed events": _forget_actor,
    "dead letters": _delete_dead_letters,
    "feed": _reset_feed,
}
FIRST = "posts"
