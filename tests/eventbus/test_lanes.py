"""The lanes of a worker: a batch is processed side by side, each key in order, and it is done when
all of it is.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Barrier, Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from eventbus.consume import lanes
from eventbus.consume.lanes import EVENTS_WORTH_A_LANE, Lanes, split
from eventbus.consume.leaving import Leaving
from eventbus.consume.processing import Processor
from eventbus.exceptions import DeadLetterFlood, ServerAway, WorkerStopping
from eventbus.record import Record
from eventbus.subscription import Turn
from tests.eventbus.events import a_record, an_event, eventually
from tests.eventbus.journal import Journal, execute, processed
from tests.eventbus.turns import FreeTurn

TIMEOUT = 60.0


@dataclass
class Work:
    """What the lanes do, as a function."""

    process: Callable[[Sequence[Record], Turn], None]


def lanes_for(
    process: Callable[[Sequence[Record], Turn], None],
    count: int = 2,
    leaving: Leaving | None = None,
) -> Lanes:
    return Lanes(count, Work(process), Grave(), leaving or Leaving())


class Grave:
    """Takes any dead letter."""

    def __init__(self) -> None:
        self.buried: list[int] = []

    def write(self, _record: Record, _error: BaseException, delivery: Any) -> None:
        self.buried.append(delivery.event.event_id)


OURS = FreeTurn()  # to whom each record belongs


def records_of(keys: Sequence[int]) -> list[Record]:
    return [a_record(an_event(offset + 1, key=key), offset) for offset, key in enumerate(keys)]


def batch_for(count: int) -> list[Record]:
    """Return a batch that is worth `count` lanes, each record of a key of its own."""
    return records_of(range(1, 1 + count * EVENTS_WORTH_A_LANE))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a lane that waits look often whether it is to leave, and not wait long for one that
    hangs.
    """
    monkeypatch.setattr(lanes, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(lanes, "PATIENCE_SECONDS", 1.0)


# Splitting a batch --------------------------------------------------------------------------------


@given(keys=st.lists(st.integers(1, 6), max_size=40), count=st.integers(1, 5))
def test_each_key_is_in_one_lane_whole_and_in_order(keys: list[int], count: int) -> None:
    records = records_of(keys)
    shares = split(records, count)
    assert len(shares) <= count
    lane_of: dict[bytes | None, int] = {}
    by_key: dict[bytes | None, list[int]] = defaultdict(list)
    for number, share in enumerate(shares):
        assert share
        for record in share:
            assert lane_of.setdefault(record.key, number) == number
            by_key[record.key].append(record.offset)
    expected: dict[bytes | None, list[int]] = defaultdict(list)
    for record in records:
        expected[record.key].append(record.offset)
    assert by_key == expected


@given(events=st.integers(0, 100), count=st.integers(1, 8))
def test_lanes_get_about_as_much_to_do_where_keys_allow_it(events: int, count: int) -> None:
    lengths = [len(share) for share in split(records_of(range(1, 1 + events)), count)]
    assert sum(lengths) == events
    assert max(lengths, default=0) - min(lengths, default=0) <= 1


def test_records_without_a_key_are_in_one_lane() -> None:
    records = [Record("notes", 0, offset, None, b"", (), 0) for offset in range(4)]
    assert split(records, 3) == [records]


# Side by side -------------------------------------------------------------------------------------


def test_the_lanes_of_a_batch_work_at_the_same_time() -> None:
    together = Barrier(3)

    def process(_records: Sequence[Record], _turn: Turn) -> None:
        together.wait(TIMEOUT)

    lanes_for(process, count=3).process(batch_for(3), OURS)


def test_a_small_batch_is_not_split() -> None:
    shares: list[Sequence[Record]] = []

    def process(records: Sequence[Record], _turn: Turn) -> None:
        shares.append(records)

    batch = batch_for(1)
    lanes_for(process, count=4).process(batch, OURS)
    assert shares == [batch]


def test_a_batch_is_done_when_its_slowest_lane_is() -> None:
    done: list[bytes | None] = []

    def process(records: Sequence[Record], _turn: Turn) -> None:
        if is_first(records):
            time.sleep(0.2)
        done.extend(record.key for record in records)

    lanes_for(process).process(batch_for(2), OURS)
    assert sorted(done, key=str) == sorted((record.key for record in batch_for(2)), key=str)


def test_what_the_log_names_holds_in_each_lane_and_not_after_it() -> None:
    seen: list[dict[str, object]] = []

    def process(_records: Sequence[Record], _turn: Turn) -> None:
        seen.append(dict(get_contextvars()))
        bind_contextvars(event_id="of one lane")

    clear_contextvars()
    bind_contextvars(batch="all")
    two = lanes_for(process)
    two.process(batch_for(2), OURS)
    two.process(batch_for(2), OURS)
    assert seen == [{"batch": "all"}] * 4
    clear_contextvars()


# Signs of life ------------------------------------------------------------------------------------


def is_first(records: Sequence[Record]) -> bool:
    """Tell whether this is the share of the first lane."""
    return records[0].offset == 0


def test_each_lane_has_its_own_sign_of_life() -> None:
    """One lane hangs in a transaction; that another one waits, or asks, does not hide it."""
    hanging = Event()

    def process(records: Sequence[Record], turn: Turn) -> None:
        if is_first(records):
            hanging.wait(TIMEOUT)
        else:
            turn.wait(0.5)

    batch = lanes_for(process).start(batch_for(2), OURS)
    eventually(batch.some_wait)
    started = time.monotonic()
    assert not batch.done(0.1)
    assert not batch.all_asked_since(started)
    hanging.set()
    eventually(lambda: batch.all_asked_since(started))
    eventually(lambda: batch.done(0.1))


def test_a_lane_that_is_done_owes_no_sign_of_life() -> None:
    at_work = Event()

    def process(records: Sequence[Record], turn: Turn) -> None:
        while not is_first(records) and not at_work.is_set():
            turn.stopping()
            time.sleep(0.01)

    batch = lanes_for(process).start(batch_for(2), OURS)
    assert not batch.done(0.2)
    now = time.monotonic()
    eventually(lambda: batch.all_asked_since(now))
    assert not batch.some_wait()
    at_work.set()
    eventually(lambda: batch.done(0.1))


# Leaving ------------------------------------------------------------------------------------------


def test_a_worker_told_to_stop_lets_a_lane_finish_the_transaction_it_is_at_and_no_more() -> None:
    leaving, transactions = Leaving(), [0, 0]

    def process(records: Sequence[Record], turn: Turn) -> None:
        while not turn.stopping():
            leaving.begin("SIGTERM")
            time.sleep(0.2)
            transactions[records[0].offset > 0] += 1
        raise WorkerStopping

    with pytest.raises(WorkerStopping):
        lanes_for(process, leaving=leaving).process(batch_for(2), OURS)
    assert max(transactions) == 1


def test_a_lane_that_has_stopped_does_not_have_the_others_looked_at_without_a_pause() -> None:
    """Looks are counted: many of them with no sign of life say that a lane hangs."""
    leaving, looks = Leaving(), []

    def process(records: Sequence[Record], turn: Turn) -> None:
        if is_first(records):
            turn.wait(3_600)
        time.sleep(0.5)

    batch = lanes_for(process, leaving=leaving).start(batch_for(2), OURS)
    leaving.begin("SIGTERM")

    def look() -> None:
        while not batch.done(0.1):
            looks.append(time.monotonic())

    with pytest.raises(WorkerStopping):
        look()
    assert len(looks) < 50


def test_a_lane_that_waits_when_the_worker_is_told_to_stop_leaves_the_batch_undone() -> None:
    leaving = Leaving()
    finished: list[int] = []

    def process(records: Sequence[Record], turn: Turn) -> None:
        if is_first(records):
            turn.wait(3_600)
        time.sleep(0.1)
        leaving.begin("SIGTERM")
        time.sleep(0.2)
        finished.append(len(records))

    with pytest.raises(WorkerStopping):
        lanes_for(process, leaving=leaving).process(batch_for(2), OURS)
    assert finished == [EVENTS_WORTH_A_LANE]


def test_the_failure_of_one_lane_ends_the_waits_of_the_others_and_is_what_the_worker_hears_of() -> (
    None
):
    waiting = Event()

    def process(records: Sequence[Record], turn: Turn) -> None:
        if is_first(records):
            waiting.set()
            turn.wait(3_600)
        assert waiting.wait(TIMEOUT)
        raise DeadLetterFlood("too many")

    leaving = Leaving()
    with pytest.raises(DeadLetterFlood):
        lanes_for(process, leaving=leaving).process(batch_for(2), OURS)
    assert leaving.reason == "DeadLetterFlood"


def test_the_failure_of_one_lane_is_heard_of_although_another_hangs() -> None:
    hanging = Event()

    def process(records: Sequence[Record], _turn: Turn) -> None:
        if is_first(records):
            hanging.wait(TIMEOUT)
        raise DeadLetterFlood("too many")

    try:
        with pytest.raises(DeadLetterFlood):
            lanes_for(process).process(batch_for(2), OURS)
    finally:
        hanging.set()


def test_who_has_patience_is_told_of_a_lane_that_waits_for_longer() -> None:
    def process(_records: Sequence[Record], turn: Turn) -> None:
        while True:
            turn.wait(0.05)

    with pytest.raises(ServerAway, match="has not answered"):
        lanes_for(process).process(batch_for(2), OURS, patience=0.3)


def test_a_lane_that_gets_on_between_its_waits_is_waited_for() -> None:
    def process(_records: Sequence[Record], turn: Turn) -> None:
        for _ in range(10):
            turn.wait(0.05)
            assert not turn.stopping()  # as before each transaction

    lanes_for(process).process(batch_for(2), OURS, patience=0.3)


# With PostgreSQL ----------------------------------------------------------------------------------


@pytest.fixture
def journal(transactional_db: None) -> Iterator[Journal]:
    yield Journal()
    execute("DROP TABLE journal")


def test_a_batch_in_lanes_has_the_effect_of_one_after_the_other(journal: Journal) -> None:
    """Of 200 events of 20 keys one can never be applied, one breaks its lane's connection, one
    fails at first.
    """
    commands: dict[int, dict[str, Any]] = {
        50: {"fails": "constraint"},
        51: {"fails": "outage", "times": 1},
        120: {"fails": "bug", "times": 1},
    }
    events = [
        an_event(number, key=number % 20 + 1, **commands.get(number, {}))
        for number in range(1, 201)
    ]
    grave = Grave()
    two = Lanes(2, Processor(journal), grave, Leaving())
    for _ in range(2):  # the second time redelivered
        two.process([a_record(event) for event in events], OURS)
    expected = {event.event_id for event in events} - {50}
    assert (grave.buried, processed()) == ([50, 50], expected)
    rows = journal.rows()
    assert (len(rows), set(rows)) == (len(expected), expected)
    for key in range(20):
        of_key = [event_id for event_id in rows if event_id % 20 == key]
        assert of_key == sorted(of_key)
