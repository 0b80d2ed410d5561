"""How far the copy of a cell has come, compared with the cell that serves the readers."""

import random
import time
from contextlib import closing
from typing import Any

from eventbus import cells, identity, kafka
from eventbus.cellmap import Slots, refuse, written
from eventbus.cells import Cell
from eventbus.database.sql import bigints, fetch
from eventbus.models import ConsumerOffset, DeadLetter
from eventbus.watch.backlog import Backlog

Offsets = dict[int, tuple[int, str]]  # by partition: the next one, and of which topic
Pair = tuple[int, int]  # follower, followee

POLL_SECONDS = 0.2
SAMPLES, ROWS_A_SAMPLE = 20, 50
MOST_DEAD_LETTERS = 1_000
# More than all workers of a cell have in hand; and what is older may have been pruned in the copy.
NEWEST_EVENTS, NEWEST_MINUTES = 20_000, 10

_SOME_FOLLOWS = """
SELECT follower_id, followee_id FROM follows WHERE follower_id >= %s ORDER BY 1, 2 LIMIT %s
"""
_FOLLOWS_AMONG = """
SELECT follower_id, followee_id FROM follows
JOIN unnest(%s::bigint[], %s::bigint[]) AS pair (follower, followee)
    ON follower_id = follower AND followee_id = followee
"""
_ERASED_AMONG = "SELECT user_id FROM erasures WHERE user_id = ANY(%s::bigint[])"
_SOME_POSTS = "SELECT id FROM posts WHERE id >= %s ORDER BY id LIMIT %s"
_POSTS_AMONG = "SELECT id FROM posts WHERE id = ANY(%s::bigint[])"
# By their key, not by the time, of which there is no index.
_NEWEST_EVENTS = """
SELECT event_id FROM (
    SELECT event_id, processed_at FROM processed_events ORDER BY event_id DESC LIMIT %s
) AS newest WHERE processed_at > clock_timestamp() - make_interval(mins => %s)
"""
_EVENTS_AMONG = "SELECT event_id FROM processed_events WHERE event_id = ANY(%s::bigint[])"
_LIMITS = "SELECT coalesce(max(follower_id), 0) FROM follows"
_POST_LIMITS = "SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM posts"


def require_caught_up(source: Cell, copy: Cell, slots: Slots, seconds: float) -> None:
    """Return when the copy has all that the source has at this moment of the readers of `slots`.

    Raises `ImproperlyConfigured`, after `seconds` at most, if it has not.
    """
    identity.require_all([source, copy])
    if not slots <= copy.holds:
        refuse(f"Cell {copy.name} does not hold slots {written(slots - copy.holds)}")
    follows, posts = _some_follows(source, slots), _some_posts(source)
    _wait(source, copy, seconds)
    _require_no_dead_letters(source, copy)
    _require_rows(copy, follows, posts)


def _wait(source: Cell, copy: Cell, seconds: float) -> None:
    """Return when the copy has processed what the source has now: all before its offsets, and what it
    shows already though its offsets, which follow the effects, do not say so yet.
    """
    goal, newest = _offsets(source), _newest_events(source)
    deadline = time.monotonic() + seconds
    while True:
        missing = _missing(goal, _offsets(copy))
        # What has failed in the copy is not waited for.
        missing = missing or len(newest - _processed(copy, newest) - _failed(copy))
        if not missing:
            return
        if time.monotonic() > deadline:
            refuse(f"Cell {copy.name} is {missing} events behind cell {source.name}")
        time.sleep(POLL_SECONDS)


def _newest_events(cell: Cell) -> set[int]:
    with cells.on(cell):
        return _ids(_NEWEST_EVENTS, [NEWEST_EVENTS, NEWEST_MINUTES])


def _processed(cell: Cell, events: set[int]) -> set[int]:
    with cells.on(cell):
        return _ids(_EVENTS_AMONG, [bigints(events)])


def _failed(cell: Cell) -> set[int]:
    """Return the newest events that are dead letters in the cell and not resolved."""
    with cells.on(cell):
        letters = DeadLetter.objects.unresolved().exclude(event_id=None).order_by("-id")
        found = letters.values_list("event_id", flat=True)[:MOST_DEAD_LETTERS]
        return {event_id for event_id in found if event_id is not None}


def _ids(statement: str, values: list[Any]) -> set[int]:
    return {found for (found,) in fetch(statement, values)}


def _offsets(cell: Cell) -> Offsets:
    with cells.on(cell):
        kept = ConsumerOffset.objects.filter(group=kafka.fanout_group(), topic=kafka.FEED_EVENTS)
        return {row.partition: (row.next_offset, row.topic_id) for row in kept}


def to_come(topic: str, group: str) -> int:
    """Return how many records of the topic the group has not processed, by the offsets in the database
    that we are on: Kafka hears of none before the first record after a copy.

    Raises `KafkaException` and `DatabaseError`.
    """
    kept = ConsumerOffset.objects.filter(group=group, topic=topic)
    reached = dict(kept.values_list("partition", "next_offset"))
    with closing(Backlog(topic, group)) as log:
        partitions = log.read()
    oldest = kafka.oldest_offsets(topic, partitions)
    records = 0
    for number, standing in partitions.items():
        end = max(standing.committed, oldest[number]) + standing.lag
        records += max(0, end - max(reached.get(number, 0), oldest[number]))
    return records


def _missing(goal: Offsets, found: Offsets) -> int:
    missing = 0
    for partition, (end, topic_id) in goal.items():
        reached, of_topic = found.get(partition, (0, topic_id))
        missing += max(0, end - (reached if of_topic == topic_id else 0))
    return missing


def _some_follows(source: Cell, slots: Slots) -> set[Pair]:
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


def _require_rows(copy: Cell, follows: set[Pair], posts: set[int]) -> None:
    """Refuse what is no copy: a database that has only the end of the log, or lacks an import."""
    columns = [bigints(one for one, _ in follows), bigints(other for _, other in follows)]
    with cells.on(copy):
        lacking = follows - {(one, other) for one, other in fetch(_FOLLOWS_AMONG, columns)}
        # An erasure that is under way may have come further here than where these are from.
        erased = _ids(_ERASED_AMONG, [bigints({user for pair in lacking for user in pair})])
        lost = posts - _ids(_POSTS_AMONG, [bigints(posts)])
    lacking = {pair for pair in lacking if erased.isdisjoint(pair)}
    for missing, of, what in ((lacking, follows, "follows"), (lost, posts, "posts")):
        if missing:
            refuse(
                f"Cell {copy.name} lacks {len(missing)} of {len(of)} {what} that were looked up in it"
            )


def _require_no_dead_letters(source: Cell, copy: Cell) -> None:
    """Refuse to have readers miss what was processed where they are now."""
    with cells.on(copy):
        unstored = to_come(kafka.DEAD_LETTER_EVENTS, kafka.dlq_group())
    if unstored:
        refuse(
            f"Cell {copy.name} has {unstored} dead letters still to store: see to it that its run_dlq "
            "is running"
        )
    if processed := _processed(source, _failed(copy)):
        refuse(
            f"{len(processed)} events that cell {source.name} has processed are dead letters in cell "
            f"{copy.name}: replay them there"
        )
