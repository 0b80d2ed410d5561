"""How far the copy of a cell has come, compared with the cell that serves the readers."""

import random
import time

from eventbus import cells, identity, kafka
from eventbus.cellmap import Slots, refuse, written
from eventbus.cells import Cell
from eventbus.database.sql import bigints, fetch
from eventbus.models import ConsumerOffset, DeadLetter, ProcessedEvent

Offsets = dict[int, tuple[int, str]]  # by partition: the next one, and of which topic

POLL_SECONDS = 0.2
SAMPLES, ROWS_A_SAMPLE = 20, 50
MOST_DEAD_LETTERS = 1_000

_SOME_FOLLOWS = """
SELECT follower_id, followee_id FROM follows WHERE follower_id >= %s ORDER BY 1, 2 LIMIT %s
"""
_FOLLOWS_AMONG = """
SELECT follower_id, followee_id FROM follows
JOIN unnest(%s::bigint[], %s::bigint[]) AS pair (follower, followee)
    ON follower_id = follower AND followee_id = followee
"""
_SOME_POSTS = "SELECT id FROM posts WHERE id >= %s ORDER BY id LIMIT %s"
_POSTS_AMONG = "SELECT id FROM posts WHERE id = ANY(%s::bigint[])"
_LIMITS = "SELECT coalesce(max(follower_id), 0) FROM follows"
_POST_LIMITS = "SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM posts"


def require_caught_up(source: Cell, copy: Cell, slots: Slots, seconds: float) -> None:
    """Return when the copy has all that the source has at this moment of the readers of `slots`.

    Raises `ImproperlyConfigured`, after `seconds` at most, if it has not.
    """
    for cell in (source, copy):
        if sentence := identity.problem(cell):
            refuse(sentence)
    if not slots <= copy.holds:
        refuse(f"Cell {copy.name} does not hold slots {written(slots - copy.holds)}")
    follows, posts = _some_follows(source, slots), _some_posts(source)
    _wait(source, copy, seconds)
    _require_rows(copy, follows, posts)
    _require_no_dead_letters(source, copy)


def behind(source: Cell, copy: Cell) -> int:
    """Return how many records of the log the source has processed and the copy has not."""
    return _missing(_offsets(source), _offsets(copy))


def _wait(source: Cell, copy: Cell, seconds: float) -> None:
    goal = _offsets(source)
    deadline = time.monotonic() + seconds
    while missing := _missing(goal, _offsets(copy)):
        if time.monotonic() > deadline:
            refuse(f"Cell {copy.name} is {missing} events behind cell {source.name}")
        time.sleep(POLL_SECONDS)


def _offsets(cell: Cell) -> Offsets:
    with cells.on(cell):
        kept = ConsumerOffset.objects.filter(group=kafka.fanout_group(), topic=kafka.FEED_EVENTS)
        return {row.partition: (row.next_offset, row.topic_id) for row in kept}


def _missing(goal: Offsets, found: Offsets) -> int:
    missing = 0
    for partition, (end, topic_id) in goal.items():
        reached, of_topic = found.get(partition, (0, topic_id))
        missing += max(0, end - (reached if of_topic == topic_id else 0))
    return missing


def _some_follows(source: Cell, slots: Slots) -> set[tuple[int, int]]:
    """Return follows of such readers, taken here and there."""
    with cells.on(source):
        [(highest,)] = fetch(_LIMITS)
        starts = [0, *(random.randint(0, highest) for _ in range(SAMPLES))]  # noqa: S311 - a sample
        rows = [row for start in starts for row in fetch(_SOME_FOLLOWS, [start, ROWS_A_SAMPLE])]
    return {(one, other) for one, other in rows if cells.slot_of(one) in slots}


def _some_posts(source: Cell) -> set[int]:
    with cells.on(source):
        [(lowest, highest)] = fetch(_POST_LIMITS)
        starts = [lowest, *(random.randint(lowest, highest) for _ in range(SAMPLES))]  # noqa: S311
        return {post for start in starts for (post,) in fetch(_SOME_POSTS, [start, ROWS_A_SAMPLE])}


def _require_rows(copy: Cell, follows: set[tuple[int, int]], posts: set[int]) -> None:
    """Refuse what is no copy: a database that has only the end of the log, or lacks an import."""
    pairs = sorted(follows)
    columns = [bigints(one for one, _ in pairs), bigints(other for _, other in pairs)]
    with cells.on(copy):
        lacking = len(pairs) - len(fetch(_FOLLOWS_AMONG, columns))
        lost = len(posts) - len(fetch(_POSTS_AMONG, [bigints(posts)]))
    for missing, of, what in ((lacking, len(pairs), "follows"), (lost, len(posts), "posts")):
        if missing:
            refuse(f"Cell {copy.name} lacks {missing} of {of} {what} that were looked up in it")


def _require_no_dead_letters(source: Cell, copy: Cell) -> None:
    """Refuse to have readers miss what was processed where they are now."""
    with cells.on(copy):
        letters = DeadLetter.objects.unresolved().exclude(event_id=None).only("event_id")
        events = [letter.event_id for letter in letters[:MOST_DEAD_LETTERS] if letter.event_id]
    with cells.on(source):
        processed = ProcessedEvent.objects.filter(event_id__in=events).count()
    if processed:
        refuse(
            f"{processed} events that cell {source.name} has processed are dead letters in cell "
            f"{copy.name}: replay them there"
        )
