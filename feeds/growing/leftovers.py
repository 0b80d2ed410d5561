"""What a cell has of readers whom it no longer holds: put to rest, and deleted in bounded parts.

Each part is a transaction and may be repeated, so an end at any point loses nothing. Workers go on
meanwhile: a part holds the locks that they hold for the same rows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from eventbus import cells
from eventbus.cells import Cell
from eventbus.database import locks
from eventbus.database.plans import by_index
from eventbus.database.sql import bigints, execute, fetch
from eventbus.ids.snowflake import MAX_ID
from feeds import follows
from feeds.models import RESTING, Feed
from feeds.read import here

USERS_A_PART = 100
FOLLOWS_A_PART = 1_000
FEEDS_A_PART = 10

_REST = """
WITH gone AS (
    UPDATE feeds SET idle = true, floor = %(resting)s, rebuild_wanted = false, seen_post_id = NULL
    WHERE user_id = ANY(%(users)s::bigint[]) AND (NOT idle OR floor <> %(resting)s OR seen_post_id IS NOT NULL)
)
UPDATE follows SET idle = true WHERE follower_id = ANY(%(users)s::bigint[]) AND NOT idle
"""
_FOLLOWS = """
SELECT follower_id, followee_id FROM follows WHERE follower_id = ANY(%s::bigint[])
ORDER BY 1, 2 LIMIT %s
"""
_ENTRIES = "DELETE FROM feed_entries WHERE user_id = ANY(%s::bigint[])"
_MUTES = "DELETE FROM mutes WHERE user_id = ANY(%s::bigint[])"
# A block keeps either from following the other, so it stays while this cell holds one of them.
_BLOCKS = "DELETE FROM blocks WHERE blocker_id = ANY(%s::bigint[]) AND NOT {held}"
_COUNTS = {
    "follows": "SELECT count(*) FROM follows WHERE follower_id = ANY(%s::bigint[])",
    "feed_entries": "SELECT count(*) FROM feed_entries WHERE user_id = ANY(%s::bigint[])",
    "mutes": "SELECT count(*) FROM mutes WHERE user_id = ANY(%s::bigint[])",
}


def count(cell: Cell) -> Counter[str]:
    """Return how many rows of whom it does not hold the cell has, by table."""
    found: Counter[str] = Counter()
    with cells.on(cell):
        for users in _parts(cell):
            with by_index():
                for table, statement in _COUNTS.items():
                    [(rows,)] = fetch(statement, [bigints(users)])
                    found[table] += rows
    return found


def delete(cell: Cell) -> Iterator[Counter[str]]:
    """Delete them; yield after each part how many rows of which table it was."""
    with cells.on(cell):
        for users in _parts(cell):
            _put_to_rest(users)
            locks.wait_for_workers()  # who has looked before whom to write for
            yield Counter(follows=_delete_follows(users))
            yield Counter(feed_entries=_delete_entries(users), mutes=_delete_others(users))


def _parts(cell: Cell) -> Iterator[list[int]]:
    """Yield users whom the cell does not hold, a part at a time."""
    after = 0
    feeds = Feed.objects.order_by("user_id").values_list("user_id", flat=True)
    while users := list(feeds.filter(user_id__gt=after)[:USERS_A_PART]):
        after = users[-1]
        if strangers := cell.strangers(users):
            yield strangers


def _put_to_rest(users: Sequence[int]) -> None:
    with by_index():
        locks.join_workers()
        follows.lock_feeds(users)
        execute(_REST, {"users": bigints(users), "resting": RESTING})
    here.pages.invalidate(users)


def _delete_follows(users: Sequence[int]) -> int:
    deleted = 0
    while pairs := fetch(_FOLLOWS, [bigints(users), FOLLOWS_A_PART]):
        concerned = {user for pair in pairs for user in pair}
        with by_index():
            locks.acquire_keys(concerned)
            follows.lock_feeds(concerned)
            follows.forget([(one, other) for one, other in pairs], MAX_ID)
        deleted += len(pairs)
    return deleted


def _delete_entries(users: Sequence[int]) -> int:
    deleted = 0
    for start in range(0, len(users), FEEDS_A_PART):
        with by_index():
            deleted += execute(_ENTRIES, [bigints(users[start : start + FEEDS_A_PART])])
    return deleted


def _delete_others(users: Sequence[int]) -> int:
    with by_index():
        locks.acquire_keys(users)
        execute(_BLOCKS.format(held=cells.holds_sql("blocked_id")), [bigints(users)])
        return execute(_MUTES, [bigints(users)])
