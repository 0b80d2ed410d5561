"""Following and unfollowing, and what they do to feeds.

The highest event id of a pair wins, in whatever order.
"""

import sys
from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from django.conf import settings

from eventbus import metrics
from eventbus.database.sql import bigints, execute, fetch
from eventbus.models import BEFORE_ERASURE
from feeds import fanout
from feeds.events import FollowFact, UserFollowed, UserUnfollowed
from feeds.models import BLOCKED, BLOCKS_OF_PAIR, FLOOR, IN_FEED, LAST_BLOCK, TO_DELIVER
from posts.models import PUSHED

Pair = tuple[int, int]  # follower, followee
F = TypeVar("F", UserFollowed, UserUnfollowed)


class Changed(NamedTuple):
    """A row of `follows` that was written: whether it is in effect now, and whether the followee's
    posts are in the follower's feed.
    """

    follower_id: int
    followee_id: int
    active: bool
    in_feed: bool

    @property
    def pair(self) -> Pair:
        return self.follower_id, self.followee_id


_PAIRS = "unnest(%(followers)s::bigint[], %(followees)s::bigint[])"

# Each pair, and each user, is looked up by its key, one after the other, whatever statistics say of
# the tables: `OFFSET 0` keeps PostgreSQL from making a join of it.
_ACTIVE = f"""
SELECT follower, followee FROM {_PAIRS} AS pair (follower, followee) CROSS JOIN LATERAL (
    SELECT FROM follows WHERE follower_id = follower AND followee_id = followee AND active OFFSET 0
) AS active
"""  # noqa: S608 - composed of constants

# What is from before either was erased has no effect: the pair may be forgotten by now.
_WRITE = f"""
INSERT INTO follows (follower_id, followee_id, active, held, idle, muted, event_id)
SELECT follower, followee, wanted AND NOT blocked, wanted AND blocked, feed.idle,
    coalesce((SELECT mutes.active FROM mutes WHERE mutes.user_id = follower AND muted_id = followee), false), event
FROM (
    SELECT follower, followee, event, %(wanted)s AND event > {LAST_BLOCK} AS wanted, {BLOCKED} AS blocked
    FROM unnest(%(followers)s::bigint[], %(followees)s::bigint[], %(events)s::bigint[])
        AS fact (follower, followee, event)
    {BLOCKS_OF_PAIR}
) AS new
CROSS JOIN LATERAL (SELECT idle FROM feeds WHERE user_id = follower OFFSET 0) AS feed
WHERE NOT {BEFORE_ERASURE.format(user="follower", id="event")}
  AND NOT {BEFORE_ERASURE.format(user="followee", id="event")}
ORDER BY 1, 2
ON CONFLICT (follower_id, followee_id) DO UPDATE
SET active = EXCLUDED.active, held = EXCLUDED.held, idle = EXCLUDED.idle, muted = EXCLUDED.muted,
    event_id = EXCLUDED.event_id
WHERE follows.event_id <= EXCLUDED.event_id
RETURNING follower_id, followee_id, active, {IN_FEED}
"""  # noqa: S608 - composed of constants

# The newest posts of the followee above the follower's floor and the horizon; one more than fits
# tells where the floor must go.
_BACKFILL = f"""
WITH found AS (
    SELECT follower, post.id, followee, row_number() OVER (PARTITION BY follower, followee ORDER BY post.id DESC) AS n
    FROM {_PAIRS} AS pair (follower, followee)
    CROSS JOIN LATERAL (SELECT {FLOOR} AS floor FROM feeds WHERE user_id = follower OFFSET 0) AS feed
    CROSS JOIN LATERAL (
        SELECT id FROM posts
        WHERE author_id = followee AND {PUSHED} AND id > feed.floor
        ORDER BY id DESC LIMIT %(cap)s + 1
    ) AS post
), raised AS (
    UPDATE feeds SET floor = greatest(floor, cut.id)
    FROM (SELECT follower, max(id) AS id FROM found WHERE n > %(cap)s GROUP BY 1) AS cut
    WHERE user_id = cut.follower AND user_id = ANY(%(followers)s::bigint[])
)
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT follower, id, followee FROM found WHERE n <= %(cap)s ORDER BY 1, 2
ON CONFLICT DO NOTHING
"""  # noqa: S608 - composed of constants

# Found by the followee's posts, not by looking through all that the follower has; those that are
# deleted may have rows for as long as they are being withdrawn.
_TO_REMOVE = f"""
SELECT follower, post.id FROM {_PAIRS} AS pair (follower, followee)
CROSS JOIN LATERAL (SELECT {FLOOR} AS floor FROM feeds WHERE user_id = follower OFFSET 0) AS feed
CROSS JOIN LATERAL (
    SELECT id FROM posts
    WHERE author_id = followee AND {PUSHED} AND id > feed.floor
    UNION ALL
    SELECT post_id FROM withdrawals WHERE author_id = followee
    OFFSET 0
) AS post
ORDER BY 1, 2
"""  # noqa: S608 - composed of constants

# An author who comes to be pulled is watched by readers from now on, so that the first such post
# finds them ready.
_COUNT = """
UPDATE feeds SET
    follower_count = follower_count + change,
    pulled_since = CASE WHEN follower_count + change >= %(pulled_from)s THEN coalesce(pulled_since, clock_timestamp())
        ELSE pulled_since END
FROM (SELECT followee, %(step)s * count(*) AS change FROM unnest(%(followees)s::bigint[]) AS one (followee) GROUP BY 1)
    AS changes
WHERE user_id = followee AND user_id = ANY(%(followees)s::bigint[])
"""

_FORGET = f"""
DELETE FROM follows WHERE ctid = ANY(ARRAY(
    SELECT found.ctid FROM {_PAIRS} AS pair (follower, followee) CROSS JOIN LATERAL (
        SELECT ctid FROM follows
        WHERE follower_id = follower AND followee_id = followee AND event_id < %(before)s OFFSET 0
    ) AS found
))
RETURNING follower_id, followee_id, active
"""  # noqa: S608 - composed of constants

_LOCK_FEEDS = "SELECT 1 FROM feeds WHERE user_id = ANY(%s) ORDER BY user_id FOR UPDATE"


def lock_feeds(user_ids: Iterable[int]) -> None:
    """Hold the `feeds` rows of the users until the transaction ends.

    To be called once a transaction, with all whose rows its facts will change: in one go and in id
    order, such transactions cannot deadlock.
    """
    execute(_LOCK_FEEDS, [list(user_ids)])


def apply_follows(facts: Sequence[UserFollowed]) -> None:
    """Make the pairs active and put the followees' posts into the followers' feeds, but where a block
    or a mute is in the way.
    """
    facts = _last_of_each_pair(facts)
    active_before = _active(facts)
    settle(_write(facts, wanted=True), active_before)


def apply_unfollows(facts: Sequence[UserUnfollowed]) -> None:
    """Make the pairs inactive and take the followees' posts out of the followers' feeds."""
    facts = _last_of_each_pair(facts)
    active_before = _active(facts)
    settle(_write(facts, wanted=False), active_before)


def settle(changed: Sequence[Changed], active_before: Container[Pair]) -> None:
    """Have follower counts and feeds follow what these rows say now."""
    if gained := [row.pair for row in changed if row.active and row.pair not in active_before]:
        _count(gained, step=1)
    if lost := [row.pair for row in changed if not row.active and row.pair in active_before]:
        _count(lost, step=-1)
    update_feeds(changed)


def update_feeds(changed: Sequence[Changed]) -> None:
    """Put the followees' posts into the followers' feeds, or take them out, as the rows say."""
    if shown := [row.pair for row in changed if row.in_feed]:
        rows = execute(_BACKFILL, {**_columns(shown), "cap": settings.FEED_MAX_ENTRIES})
        metrics.fanout_rows_total.inc(rows)
    if hidden := [row.pair for row in changed if not row.in_feed]:
        fanout.remove(fetch(_TO_REMOVE, _columns(hidden)))


def forget(pairs: Sequence[Pair], before: int) -> None:
    """Delete the pairs that no event from `before` on has changed, with what they brought into
    feeds.

    Needs the locks of the followees, and the `feeds` rows of all (`lock_feeds`).
    """
    gone = fetch(_FORGET, {**_columns(pairs), "before": before})
    ended = [(follower, followee) for follower, followee, active in gone if active]
    _count(ended, step=-1)
    fanout.remove(fetch(_TO_REMOVE, _columns(ended)))


def _last_of_each_pair(facts: Iterable[F]) -> list[F]:
    last: dict[Pair, F] = {}
    for fact in facts:
        pair = (fact.follower_id, fact.followee_id)
        if pair not in last or last[pair].event_id < fact.event_id:
            last[pair] = fact
    return list(last.values())


def _active(facts: Iterable[FollowFact]) -> set[Pair]:
    pairs = [(fact.follower_id, fact.followee_id) for fact in facts]
    return {(follower, followee) for follower, followee in fetch(_ACTIVE, _columns(pairs))}


def _write(facts: Sequence[FollowFact], *, wanted: bool) -> list[Changed]:
    """Write the pairs that no later event has changed; return them."""
    columns = _columns([(fact.follower_id, fact.followee_id) for fact in facts])
    values = {**columns, "events": [fact.event_id for fact in facts], "wanted": wanted}
    return [Changed(*row) for row in fetch(_WRITE, values)]


def _count(pairs: Sequence[Pair], *, step: int) -> None:
    execute(_COUNT, {**_columns(pairs), "step": step, "pulled_from": fanout.pulled_from()})


def _columns(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    return {
        "followers": [follower for follower, _ in pairs],
        "followees": [followee for _, followee in pairs],
    }


# As bytes, which Python takes over at once: there are as many pairs as rows were delivered.
_AUDIENCE = f"""
SELECT author, part.last, part.followers
FROM unnest(%(authors)s::bigint[], %(afters)s::bigint[]) AS asked (author, after)
CROSS JOIN LATERAL (
    SELECT max(follower_id) AS last, string_agg(int8send(follower_id), '') AS followers FROM (
        SELECT follower_id FROM follows
        WHERE followee_id = author AND {TO_DELIVER} AND follower_id > after
        ORDER BY follower_id LIMIT %(limit)s
    ) AS follower
) AS part
"""  # noqa: S608 - composed of constants
_LEAST_PART = 1_000
_ID_BYTES = 8


def audience(authors: Iterable[int]) -> Iterator[dict[int, "array[int]"]]:
    """Yield, by author, the author and the followers whose feeds do not rest, in parts of about
    `FEED_BATCH_MAX_ROWS` in all; of no authors one empty part.
    """
    audience_of = {author: array("q", [author]) for author in authors}
    afters = dict.fromkeys(audience_of, 0)
    while afters:
        limit = max(_LEAST_PART, settings.FEED_BATCH_MAX_ROWS // len(afters))
        values = {"authors": bigints(afters), "afters": bigints(afters.values()), "limit": limit}
        afters = {}
        for author, last, followers in fetch(_AUDIENCE, values):
            if followers is None:
                continue
            audience_of[author] += _ids_in(followers)
            if len(followers) == limit * _ID_BYTES:
                afters[author] = last
        if afters:
            yield audience_of
            audience_of = {author: array("q") for author in afters}
    yield audience_of


def _ids_in(data: bytes) -> "array[int]":
    ids = array("q", data)
    if sys.byteorder == "little":
        ids.byteswap()
    return ids
