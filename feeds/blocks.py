"""Blocking: neither follows the other, and neither sees anything of the other.

A block ends the follows of the pair, both ways. In effect is a follow that is wanted by its own
last event, is later than every block of the pair, and is not held by one in effect: a function of
the highest event ids alone, so blocks, follows and unfollows may come in any order.

`follows.active` says whether it is in effect, `follows.held` whether it would be if the pair were
not blocked. A follow that a block has ended is neither, and need not be remembered: the highest id
of a block never falls. So whoever changes one of the three has to lock both users.
"""

from collections.abc import Iterable, Sequence

import structlog
from django import db

from eventbus.database.sql import bigints, execute, fetch
from eventbus.models import BEFORE_ERASURE
from feeds import follows
from feeds.events import BlockFact, UserBlocked
from feeds.follows import Changed, Pair
from feeds.models import BLOCKED, BLOCKS_OF_PAIR, IN_FEED, LATER_THAN_BLOCKS, users_beyond
from posts.models import Block
from posts.pagination import Position

IN_THE_WAY = "A block is between you and this user."

# What is from before who blocks was erased has no effect: the pair may be forgotten by now. Who is
# blocked is not rid of that by being erased.
_WRITE = f"""
INSERT INTO blocks (blocker_id, blocked_id, blocked_event_id, unblocked_event_id)
SELECT blocker, blocked, max(CASE WHEN blocks THEN event ELSE 0 END), max(CASE WHEN blocks THEN 0 ELSE event END)
FROM unnest(%(blockers)s::bigint[], %(blocked)s::bigint[], %(blocks)s::boolean[], %(events)s::bigint[])
    AS new (blocker, blocked, blocks, event)
WHERE NOT {BEFORE_ERASURE.format(user="blocker", id="event")}
GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (blocker_id, blocked_id) DO UPDATE SET
    blocked_event_id = greatest(blocks.blocked_event_id, EXCLUDED.blocked_event_id),
    unblocked_event_id = greatest(blocks.unblocked_event_id, EXCLUDED.unblocked_event_id)
"""  # noqa: S608 - composed of constants
# Here and below each pair is looked up by its key, whatever statistics say of the tables. Nobody else
# changes the rows meanwhile, for both users of each are locked.
_ROWS = """
SELECT found.ctid FROM unnest(%(blockers)s::bigint[], %(blocked)s::bigint[]) AS pair (blocker, blocked)
CROSS JOIN LATERAL (
    SELECT ctid, * FROM blocks WHERE blocker_id = blocker AND blocked_id = blocked OFFSET 0
) AS found
"""
_FORGET = f"""
UPDATE blocks SET
    blocked_event_id = CASE WHEN blocked_event_id < %(before)s THEN 0 ELSE blocked_event_id END,
    unblocked_event_id = CASE WHEN unblocked_event_id < %(before)s THEN 0 ELSE unblocked_event_id END
WHERE ctid = ANY(ARRAY({_ROWS}))
"""  # noqa: S608 - composed of constants
_DELETE = f"""
DELETE FROM blocks WHERE ctid = ANY(ARRAY({_ROWS} WHERE found.blocked_event_id = 0 AND found.unblocked_event_id = 0))
"""  # noqa: S608 - composed of constants
_SETTLE = f"""
WITH truth AS MATERIALIZED (
    SELECT follows.ctid AS place, active AS was_active, held AS was_held,
        (active OR held) AND {LATER_THAN_BLOCKS} AS wanted, {BLOCKED} AS blocked
    FROM unnest(%(followers)s::bigint[], %(followees)s::bigint[]) AS pair (follower, followee)
    CROSS JOIN LATERAL (
        SELECT ctid, * FROM follows WHERE follower_id = follower AND followee_id = followee OFFSET 0
    ) AS follows
    {BLOCKS_OF_PAIR}
), changed AS MATERIALIZED (
    SELECT * FROM truth WHERE (was_active, was_held) <> (wanted AND NOT blocked, wanted AND blocked)
)
UPDATE follows SET active = wanted AND NOT blocked, held = wanted AND blocked
FROM changed
WHERE follows.ctid = place AND follows.ctid = ANY(ARRAY(SELECT place FROM changed))
RETURNING follower_id, followee_id, active, {IN_FEED}, was_active
"""  # noqa: S608 - composed of constants

_BLOCKED_BY = """
SELECT blocked_id FROM blocks
WHERE blocker_id = %(user)s AND blocked_event_id > unblocked_event_id AND blocked_id {compare} %(id)s
ORDER BY blocked_id {direction} LIMIT %(limit)s
"""

log = structlog.get_logger(__name__)


def apply_blocks(facts: Sequence[BlockFact]) -> None:
    """End the follows of the pairs that are blocked now, and have those take effect that were held
    by a block which is lifted.

    Needs the locks of both users of each pair, and their `feeds` rows (`follows.lock_feeds`).
    """
    execute(
        _WRITE,
        {
            "blockers": bigints(fact.blocker_id for fact in facts),
            "blocked": bigints(fact.blocked_id for fact in facts),
            "blocks": [isinstance(fact, UserBlocked) for fact in facts],
            "events": bigints(fact.event_id for fact in facts),
        },
    )
    _settle((fact.blocker_id, fact.blocked_id) for fact in facts)


def blocked_page(user_id: int, position: Position, limit: int) -> list[int]:
    """Return up to `limit` of those the user has blocked beyond `position`, nearest to it first
    (one index scan).
    """
    return users_beyond(_BLOCKED_BY, user_id, position, limit)


def in_the_way(follower_id: int, followee_ids: Iterable[int]) -> set[int]:
    """Return those of the followees whom the follower cannot follow because of a block; none where
    PostgreSQL does not answer.

    A courtesy: workers see to it that such a follow has no effect. So following needs no
    PostgreSQL, as little as posting does.
    """
    try:
        return Block.objects.among(follower_id, followee_ids)
    except db.Error as error:
        log.warning("blocks_not_looked_up", error=str(error))
        return set()


def forget(pairs: Sequence[Pair], before: int) -> None:
    """Forget what the pairs (who blocks, who is blocked) have said before this event id; follows
    that were held by it take effect.

    Needs the locks of both users of each pair, and their `feeds` rows (`follows.lock_feeds`).
    """
    columns = {
        "blockers": bigints(blocker for blocker, _ in pairs),
        "blocked": bigints(blocked for _, blocked in pairs),
    }
    execute(_FORGET, {**columns, "before": before})
    execute(_DELETE, columns)
    _settle(pairs)


def _settle(pairs: Iterable[Pair]) -> None:
    """Have the follows of these pairs, both ways, be what the blocks allow now."""
    both_ways = {way for one, other in pairs for way in ((one, other), (other, one))}
    rows = fetch(
        _SETTLE,
        {
            "followers": bigints(follower for follower, _ in both_ways),
            "followees": bigints(followee for _, followee in both_ways),
        },
    )
    changed = [Changed(*row[:4]) for row in rows]
    active_before = {(row[0], row[1]) for row in rows if row[4]}
    follows.settle(changed, active_before)
