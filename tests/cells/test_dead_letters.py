"""Dead letters of cells: each stores its own, and a replay is for the cell whose it is."""

from typing import Any

import pytest

from eventbus import cells, envelope
from eventbus.cells import Cell
from eventbus.consume.processing import Processor
from eventbus.deadletters import replay, store
from eventbus.exceptions import InvalidEvent
from eventbus.models import DeadLetter, ProcessedEvent
from eventbus.record import Record
from feeds.handlers import FeedHandlers
from posts.models import Post
from tests.cells.maps import DATABASES
from tests.eventbus import broker
from tests.eventbus.conftest import feed_events as feed_events
from tests.eventbus.dead_letter_factories import a_dead_letter
from tests.eventbus.turns import FreeTurn
from tests.factories import PostCreatedFactory

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)


def letter_of(group: str, post: object, topic: str, offset: int) -> Record:
    event = post.to_event()  # type: ignore[attr-defined]
    return a_dead_letter(
        value=envelope.encode(event),
        key=envelope.encode_key(event.key),
        event_id=event.event_id,
        origin_offset=offset,
        group=group,
        topic=topic,
    )


def states(cell: Cell) -> dict[int | None, str]:
    with cells.on(cell):
        return dict(DeadLetter.objects.values_list("event_id", "state"))


def test_each_cell_stores_what_its_own_group_could_not_process(
    two_cells: list[Cell], feed_events: str
) -> None:
    posts = [PostCreatedFactory(author_id=1) for _ in range(3)]
    letters = [
        letter_of("fanout.a", posts[0], feed_events, 0),
        letter_of("fanout.b", posts[0], feed_events, 0),
        letter_of("fanout.b", posts[1], feed_events, 1),
        letter_of("fanout", posts[2], feed_events, 2),  # from before there were cells
    ]
    for cell in two_cells:
        with cells.on(cell):
            store.store(letters)
            store.store(letters)
    a, b = two_cells
    assert states(a).keys() == {posts[0].event_id, posts[2].event_id}
    assert states(b).keys() == {posts[0].event_id, posts[1].event_id}


def test_a_replay_is_for_the_cell_whose_dead_letter_it_is(
    two_cells: list[Cell], feed_events: str
) -> None:
    """One event failed in both cells, another in a alone."""
    in_both, in_a = PostCreatedFactory(author_id=1), PostCreatedFactory(author_id=1)
    letters = [
        letter_of("fanout.a", in_both, feed_events, 0),
        letter_of("fanout.b", in_both, feed_events, 0),
        letter_of("fanout.a", in_a, feed_events, 1),
    ]
    a, b = two_cells
    with cells.on(b):
        process(b, a_record_of(in_a, feed_events))
    for cell in two_cells:
        with cells.on(cell):
            store.store(letters)
    with cells.on(a):
        *_, totals = replay.replay(DeadLetter.objects.values_list("id", flat=True))
    assert totals.acknowledged == 2
    for cell in two_cells:
        process(cell, *broker.read_all(feed_events))
    assert states(a) == {in_both.event_id: "resolved", in_a.event_id: "resolved"}
    assert states(b) == {in_both.event_id: "open"}
    assert [processed(cell) for cell in two_cells] == [
        {in_both.event_id, in_a.event_id},
        {in_a.event_id},
    ]
    with cells.on(b):
        assert not Post.objects.filter(id=in_both.post_id).exists()


def test_what_says_it_is_a_replay_for_another_cell_is_not_lost(
    two_cells: list[Cell], feed_events: str
) -> None:
    """Anyone who writes to the topic may say so of an event that nobody has processed yet."""
    post = PostCreatedFactory(author_id=1)
    record = a_record_of(post, feed_events, headers=[("dlq.cell", b"a")])
    process(two_cells[1], record)
    assert processed(two_cells[1]) == {post.event_id}


def test_a_replay_of_ours_counts_beside_one_of_another_cell(
    two_cells: list[Cell], feed_events: str
) -> None:
    """As when `dlq replay` went over all cells while the workers of b were away."""
    post = PostCreatedFactory(author_id=1)
    of_a, of_b = replays_of_both(two_cells, post, feed_events)
    for cell, others_first in zip(two_cells, ([of_b, of_a], [of_a, of_b]), strict=True):
        process(cell, *others_first)
        assert states(cell) == {post.event_id: "resolved"}


def test_a_replay_of_another_cell_is_no_second_dead_letter(
    two_cells: list[Cell], feed_events: str
) -> None:
    """Our replay fails again; only that is told, whatever is in the batch beside it."""
    post = PostCreatedFactory(author_id=1)
    of_a, of_b = replays_of_both(two_cells, post, feed_events)
    for records in ((of_a, of_b), (of_b, of_a)):
        turn = FreeTurn()
        with cells.on(two_cells[1]):
            Processor(Failing()).process(records, turn)
        assert len(turn.buried) == 1


def test_what_was_discarded_here_stays_so_when_another_cell_replays_it(
    two_cells: list[Cell], feed_events: str
) -> None:
    post = PostCreatedFactory(author_id=1)
    fail_in_both(two_cells, post, feed_events)
    a, b = two_cells
    with cells.on(b):
        replay.discard(DeadLetter.objects.values_list("id", flat=True), reason="not wanted")
    with cells.on(a):
        [*replay.replay(DeadLetter.objects.values_list("id", flat=True))]
    process(b, *broker.read_all(feed_events))
    assert (states(b), processed(b)) == ({post.event_id: "discarded"}, set())


@pytest.mark.django_db
def test_what_cannot_be_read_is_a_dead_letter_whatever_cell_it_names() -> None:
    """Where there is one cell, or none of that name, nobody else has it as one."""
    record = Record("feed-events", 0, 0, b"1", b"no event", [("dlq.cell", b"a")], 0)
    turn = FreeTurn()
    Processor(FeedHandlers()).process([record], turn)
    assert len(turn.buried) == 1


class Failing(FeedHandlers):
    """Fails as for a mistake in an event."""

    def apply(self, *_args: Any, **_options: Any) -> None:
        raise InvalidEvent("It cannot be applied.")


def fail_in_both(two_cells: list[Cell], post: object, topic: str) -> None:
    """Store the post as a dead letter of each cell."""
    for cell in two_cells:
        with cells.on(cell):
            store.store([letter_of(cell.named("fanout"), post, topic, 0)])


def replays_of_both(two_cells: list[Cell], post: object, topic: str) -> list[Record]:
    """Have the post be a dead letter of each cell, replay it in each, and return what that wrote."""
    fail_in_both(two_cells, post, topic)
    for cell in two_cells:
        with cells.on(cell):
            [*replay.replay(DeadLetter.objects.values_list("id", flat=True))]
    return broker.read_all(topic)


def a_record_of(
    post: object, topic: str, headers: list[tuple[str, bytes | None]] | None = None
) -> Record:
    event = post.to_event()  # type: ignore[attr-defined]
    return Record(
        topic=topic,
        partition=0,
        offset=0,
        key=envelope.encode_key(event.key),
        value=envelope.encode(event),
        headers=headers or [],
        timestamp_ms=0,
    )


def process(cell: Cell, *records: Record) -> None:
    with cells.on(cell):
        Processor(FeedHandlers()).process(records, FreeTurn())


def processed(cell: Cell) -> set[int]:
    with cells.on(cell):
        return set(ProcessedEvent.objects.values_list("event_id", flat=True))
