"""Muting: one's feed is without somebody's posts, whether or not one follows them.

`mutes` keeps what the highest event id of a pair says, and `follows.muted` repeats it. So a mute
and a follow of the same pair, which have the same key, give the same rows in whatever order.
"""

from collections.abc import Sequence
from typing import Any

from eventbus.database.sql import fetch
from eventbus.models import BEFORE_ERASURE
from feeds import follows
from feeds.events import MuteFact, UserMuted
from feeds.follows import Changed
from feeds.models import IN_FEED, users_beyond
from posts.pagination import Position

# What is from before either was erased has no effect: the pair may be forgotten by now.
_WRITE = f"""
INSERT INTO mutes (user_id, muted_id, active, event_id)
SELECT new.* FROM unnest(%(users)s::bigint[], %(muted)s::bigint[], %(active)s::boolean[], %(events)s::bigint[])
    AS new (muting, muted, active, event)
WHERE NOT {BEFORE_ERASURE.format(user="muting", id="event")}
  AND NOT {BEFORE_ERASURE.format(user="muted", id="event")}
ORDER BY 1, 2
ON CONFLICT (user_id, muted_id) DO UPDATE SET active = EXCLUDED.active, event_id = EXCLUDED.event_id
WHERE mutes.event_id <= EXCLUDED.event_id
RETURNING user_id, muted_id
"""  # noqa: S608 - composed of constants
# Here and below each pair is looked up by its key, whatever statistics say of the tables. Nobody else
# changes the rows meanwhile, for their users' `feeds` rows are locked.
_FORGET = """
DELETE FROM mutes WHERE ctid = ANY(ARRAY(
    SELECT found.ctid FROM unnest(%(users)s::bigint[], %(muted)s::bigint[]) AS pair (muting, muted)
    CROSS JOIN LATERAL (
        SELECT ctid FROM mutes WHERE user_id = muting AND muted_id = muted AND event_id < %(before)s OFFSET 0
    ) AS found
))
RETURNING user_id, muted_id
"""
_REPEAT = f"""
UPDATE follows SET muted = coalesce(
    (SELECT mutes.active FROM mutes WHERE user_id = follower_id AND muted_id = followee_id), false
)
WHERE ctid = ANY(ARRAY(
    SELECT found.ctid FROM unnest(%(users)s::bigint[], %(muted)s::bigint[]) AS pair (follower, followee)
    CROSS JOIN LATERAL (
        SELECT ctid FROM follows WHERE follower_id = follower AND followee_id = followee OFFSET 0
    ) AS found
))
RETURNING follower_id, followee_id, active, {IN_FEED}
"""  # noqa: S608 - composed of constants

_MUTED_BY = """
SELECT muted_id FROM mutes WHERE user_id = %(user)s AND active AND muted_id {compare} %(id)s
ORDER BY muted_id {direction} LIMIT %(limit)s
"""


def apply_mutes(facts: Sequence[MuteFact]) -> None:
    """Have the muted authors' posts taken out of the users' feeds, and those of the others brought
    back.
    """
    last = {(fact.user_id, fact.muted_id): fact for fact in sorted(facts, key=_by_event)}.values()
    columns: dict[str, list[Any]] = {
        "users": [fact.user_id for fact in last],
        "muted": [fact.muted_id for fact in last],
        "active": [isinstance(fact, UserMuted) for fact in last],
        "events": [fact.event_id for fact in last],
    }
    _repeat(fetch(_WRITE, columns))


def forget(pairs: Sequence[tuple[int, int]], before: int) -> None:
    """Delete the pairs (who mutes, who is muted) that no event from `before` on has changed; if
    they follow now, the posts come back.

    Needs the locks of the muted, and the `feeds` rows of all (`lock_feeds`).
    """
    columns = {"users": [user for user, _ in pairs], "muted": [muted for _, muted in pairs]}
    gone = fetch(_FORGET, {**columns, "before": before})
    _repeat(gone)


def muted_page(user_id: int, position: Position, limit: int) -> list[int]:
    """Return up to `limit` of those the user has muted beyond `position`, nearest to it first (one
    index scan).
    """
    return users_beyond(_MUTED_BY, user_id, position, limit)


def _repeat(written: Sequence[tuple[Any, ...]]) -> None:
    """Have `follows` and the feeds say what these rows of `mutes` do."""
    columns = {"users": [user for user, _ in written], "muted": [muted for _, muted in written]}
    follows.update_feeds([Changed(*row) for row in fetch(_REPEAT, columns)])


def _by_event(fact: MuteFact) -> int:
    return fact.event_id
