"""The lanes of a worker: a batch is processed side by side, each key in order, and it is done when all of it is."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from eventbus import lanes
from eventbus.exceptions import DeadLetterFlood, WorkerStopping
from eventbus.lanes import EVENTS_WORTH_A_LANE, Lanes, split, until_done
from eventbus.processing import Processor
from eventbus.subscription import Delivery, Record
from tests.eventbus.events import a_record, an_event
from tests.eventbus.journal import Journal, execute, processed

TIMEOUT = 20.0
Busy = Callable[[float], bool]


def records_of(keys: Sequence[int]) -> list[Record]:
    return [a_record(an_event(offset + 1, key=key), offset) for offset, key in enumerate(keys)]


def batch_for(count: int) -> list[Record]:
    """Return a batch that is worth `count` lanes, each record of a key of its own."""
    return records_of(range(1, 1 + count * EVENTS_WORTH_A_LANE))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the consumer looked after often."""
    monkeypatch.setattr(lanes, "KEEP_ALIVE_SECONDS", 0.01)


# Splitting a batch ---------------------------------------------------------------------------------------------


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


# Side by side --------------------------------------------------------------------------------------------------


def test_the_lanes_of_a_batch_work_at_the_same_time() -> None:
    together = Barrier(3)

    def process(_records: Sequence[Record]) -> None:
        together.wait(TIMEOUT)

    Lanes(3, until_done).process(batch_for(3), process)


def test_a_small_batch_is_not_split() -> None:
    shares: list[Sequence[Record]] = []
    batch = batch_for(1)
    Lanes(4, until_done).process(batch, shares.append)
    assert shares == [batch]


def test_a_batch_is_done_when_its_slowest_lane_is() -> None:
    done: list[bytes | None] = []

    def process(records: Sequence[Record]) -> None:
        if records[0].offset == 0:
            time.sleep(0.2)
        done.extend(record.key for record in records)

    Lanes(2, until_done).process(batch_for(2), process)
    assert sorted(done, key=str) == sorted((record.key for record in batch_for(2)), key=str)


def test_what_the_log_names_holds_in_each_lane_and_not_after_it() -> None:
    seen: list[dict[str, object]] = []

    def process(_records: Sequence[Record]) -> None:
        seen.append(dict(get_contextvars()))
        bind_contextvars(event_id="of one lane")

    clear_contextvars()
    bind_contextvars(batch="all")
    two = Lanes(2, until_done)
    two.process(batch_for(2), process)
    two.process(batch_for(2), process)
    assert seen == [{"batch": "all"}] * 4
    clear_contextvars()


# Keeping the consumer alive, and leaving -----------------------------------------------------------------------


def test_the_consumer_is_kept_alive_for_as_long_as_a_lane_waits() -> None:
    polls = 0

    def keep_alive(busy: Busy) -> None:
        nonlocal polls
        while busy(0.01):
            polls += 1

    two = Lanes(2, keep_alive)

    def process(records: Sequence[Record]) -> None:
        if records[0].offset == 0:
            for _ in range(3):
                two.wait(0.1)

    two.process(batch_for(2), process)
    assert polls > 5


def test_the_consumer_of_a_lane_that_hangs_is_left_to_its_fate() -> None:
    """Polled on, it would keep its partitions from others for ever."""
    asked, answered, hanging = Event(), Event(), Event()

    def keep_alive(busy: Busy) -> None:
        asked.set()
        busy(0.01)
        answered.set()

    two = Lanes(2, keep_alive)

    def process(records: Sequence[Record]) -> None:
        two.wait(0)
        if records[0].offset == 0:
            hanging.wait(TIMEOUT)

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(two.process, batch_for(2), process)
        assert asked.wait(TIMEOUT)
        assert not answered.wait(0.3)
        hanging.set()
        done.result(TIMEOUT)
    assert answered.is_set()


def stop(_busy: Busy) -> None:
    raise WorkerStopping


def test_a_worker_told_to_stop_lets_its_lanes_finish_what_they_are_at() -> None:
    done: list[int] = []

    def process(records: Sequence[Record]) -> None:
        two.wait(0)
        time.sleep(0.2)
        done.append(len(records))

    two = Lanes(2, stop)
    two.process(batch_for(2), process)
    assert sum(done) == len(batch_for(2))


def test_a_lane_that_waits_when_the_worker_is_told_to_stop_leaves_the_batch_undone() -> None:
    two = Lanes(2, stop)
    finished: list[int] = []

    def process(records: Sequence[Record]) -> None:
        if records[0].offset == 0:
            two.wait(3_600)
        finished.append(len(records))

    with pytest.raises(WorkerStopping):
        two.process(batch_for(2), process)
    assert finished == [EVENTS_WORTH_A_LANE]


def test_the_failure_of_one_lane_ends_the_waits_of_the_others_and_is_what_the_worker_hears_of() -> None:
    two = Lanes(2, until_done)
    waiting = Event()

    def process(records: Sequence[Record]) -> None:
        if records[0].offset == 0:
            waiting.set()
            two.wait(3_600)
        assert waiting.wait(TIMEOUT)
        raise DeadLetterFlood("too many")

    with pytest.raises(DeadLetterFlood):
        two.process(batch_for(2), process)


def test_a_consumer_that_fails_is_heard_of_when_no_lane_is_at_work_any_more() -> None:
    at_work = threading.Semaphore(0)

    def fail(_busy: Busy) -> None:
        raise RuntimeError("the client is done for")

    two = Lanes(2, fail)

    def process(_records: Sequence[Record]) -> None:
        two.wait(0)
        time.sleep(0.2)
        at_work.release()

    with pytest.raises(RuntimeError, match="the client is done for"):
        two.process(batch_for(2), process)
    assert at_work.acquire(blocking=False)
    assert at_work.acquire(blocking=False)


# With PostgreSQL -----------------------------------------------------------------------------------------------


@pytest.fixture
def journal(transactional_db: None) -> Iterator[Journal]:
    yield Journal()
    execute("DROP TABLE journal")


def test_a_batch_in_lanes_has_the_effect_of_one_after_the_other(journal: Journal) -> None:
    """Of 200 events of 20 keys one can never be applied, one breaks its lane's connection, one fails at first."""
    two, buried = Lanes(2, until_done), []

    def bury(_record: Record, _error: BaseException, delivery: Delivery | None) -> None:
        assert delivery
        buried.append(delivery.event.event_id)

    commands: dict[int, dict[str, Any]] = {
        50: {"fails": "constraint"},
        51: {"fails": "outage", "times": 1},
        120: {"fails": "bug", "times": 1},
    }
    events = [an_event(number, key=number % 20 + 1, **commands.get(number, {})) for number in range(1, 201)]
    processor = Processor(journal.subscription(), bury, two.wait, still_ours=lambda _record: True)
    for _ in range(2):  # the second time redelivered
        two.process([a_record(event) for event in events], processor.process)
    expected = {event.event_id for event in events} - {50}
    assert (buried, processed()) == ([50, 50], expected)
    rows = journal.rows()
    assert (len(rows), set(rows)) == (len(expected), expected)
    for key in range(20):
        of_key = [event_id for event_id in rows if event_id % 20 == key]
        assert of_key == sorted(of_key)
