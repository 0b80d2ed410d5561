"""From a batch to committed effects: each event exactly once, or a dead letter, never neither."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import OperationalError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus import envelope, retry
from eventbus.consume.processing import Processor
from eventbus.database import locks
from eventbus.dead_letter_headers import Claim
from eventbus.deadletters import letters
from eventbus.event import Event
from eventbus.exceptions import DeadLetterFlood, PublishTimedOut, WorkerStopping
from eventbus.models import DeadLetter, DeadLetterGroup, ProcessedEvent
from eventbus.portion import GROW_AFTER
from eventbus.record import Delivery, Record
from feedsite import environment
from tests.eventbus.events import NOON, TYPE, a_record, an_event, counted, eventually
from tests.eventbus.journal import Journal, execute, processed, raises

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventbus"])

GARBAGE = b"no event"


class Worker:
    """A processor, and a turn that only writes down what it is asked."""

    def __init__(self, journal: Journal) -> None:
        self.buried: list[tuple[Record, BaseException, Delivery | None]] = []
        self.waits: list[float] = []
        self.lost: set[int] = set()  # partitions that another consumer has now
        self.dead_letter_failures: list[Exception] = []
        self.asked = 0  # whether to stop: before each transaction
        self.on_wait: Callable[[], None] = lambda: None
        self.on_bury: Callable[[], None] = lambda: None
        self.stops: Callable[[], bool] = lambda: False
        self.processor = Processor(journal)

    def bury(self, record: Record, error: BaseException, delivery: Delivery | None) -> None:
        if self.dead_letter_failures:
            raise self.dead_letter_failures.pop(0)
        self.on_bury()
        self.buried.append((record, error, delivery))

    def stopping(self) -> bool:
        self.asked += 1
        return self.stops()

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.on_wait()

    def still_ours(self, record: Record) -> bool:
        return record.partition not in self.lost

    def process(self, *batch: Event | Record) -> None:
        self.processor.process(
            [a_record(one) if isinstance(one, Event) else one for one in batch], self
        )

    @property
    def buried_ids(self) -> list[int]:
        return [delivery.event.event_id for _, _, delivery in self.buried if delivery]


@pytest.fixture
def journal() -> Iterator[Journal]:
    yield Journal()
    execute("DROP TABLE journal")


@pytest.fixture
def worker(journal: Journal) -> Worker:
    return Worker(journal)


def events_of_different_keys(count: int) -> list[Event]:
    return [an_event(event_id, key=event_id) for event_id in range(1, count + 1)]


# A batch in which nothing fails -------------------------------------------------------------------


def test_a_batch_is_applied_in_order_recorded_and_followed_up_in_one_go(
    worker: Worker, journal: Journal
) -> None:
    observed = counted("event_processing_duration_seconds_count", type=TYPE)
    worker.process(an_event(3), an_event(1, key=2), an_event(2))
    assert journal.rows() == [3, 1, 2]
    assert journal.calls == journal.followed_up == [[3, 1, 2]]
    assert processed() == {1, 2, 3}
    assert (worker.buried, worker.waits, journal.careful_calls) == ([], [], 0)
    assert counted("event_processing_duration_seconds_count", type=TYPE) == observed + 3


def test_an_empty_batch_does_nothing(worker: Worker, journal: Journal) -> None:
    worker.process()
    assert (journal.calls, journal.followed_up) == ([], [])


def test_each_part_of_the_plan_is_a_transaction_of_its_own(
    worker: Worker, journal: Journal
) -> None:
    journal.part_size = 2
    worker.process(*events_of_different_keys(5))
    assert journal.calls == journal.followed_up == [[1, 2], [3, 4], [5]]
    assert execute("SELECT count(DISTINCT xid) FROM journal") == [(3,)]


def test_twins_in_one_batch_are_applied_once(worker: Worker, journal: Journal) -> None:
    worker.process(an_event(1), an_event(2), an_event(1, fails="bug"))
    assert journal.rows() == [1, 2]
    assert worker.buried == []


# Redelivery and crashes ---------------------------------------------------------------------------


def test_a_redelivery_applies_nothing_again_but_repeats_the_follow_up(
    worker: Worker, journal: Journal
) -> None:
    before = counted("events_redelivered_total", type=TYPE)
    worker.process(an_event(1), an_event(2))
    worker.process(an_event(2), an_event(3))
    assert journal.rows() == [1, 2, 3]
    assert journal.followed_up == [[1, 2], [2, 3]]
    assert counted("events_redelivered_total", type=TYPE) == before + 1


def test_a_crash_before_the_commit_leaves_nothing(worker: Worker, journal: Journal) -> None:
    batch = [an_event(1), an_event(2, fails="crash", times=1), an_event(3)]
    with pytest.raises(SystemExit):
        worker.process(*batch)
    assert (journal.rows(), processed(), journal.followed_up) == ([], set(), [])
    worker.process(*batch)
    assert journal.rows() == [1, 2, 3]


def test_a_crash_after_the_commit_is_made_up_for_by_the_redelivery(
    worker: Worker, journal: Journal
) -> None:
    journal.follow_up_failures = [SystemExit()]
    with pytest.raises(SystemExit):
        worker.process(an_event(1))
    assert journal.rows() == [1]
    worker.process(an_event(1))
    assert journal.rows() == [1]
    assert journal.followed_up == [[1], [1]]


def test_workers_that_have_the_same_events_at_the_same_time_apply_them_once(
    journal: Journal,
) -> None:
    together = Barrier(4)

    def work(_number: int) -> Worker:
        worker = Worker(journal)
        try:
            together.wait()
            worker.process(*events_of_different_keys(20))
        finally:
            connection.close()
        return worker

    with ThreadPoolExecutor(4) as pool:
        workers = list(pool.map(work, range(4)))
    assert sorted(journal.rows()) == list(range(1, 21))
    assert [worker.buried for worker in workers] == [[], [], [], []]


def test_events_of_one_key_are_never_applied_by_two_workers_at_once(
    worker: Worker, journal: Journal
) -> None:
    def work_too() -> None:
        try:
            Worker(journal).process(an_event(2))
        finally:
            connection.close()

    def another_comes(events: list[int]) -> None:
        if events == [1]:
            pool.submit(work_too)
            eventually(
                lambda: execute(
                    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                )
            )
            assert journal.calls == [[1]]

    journal.on_apply = another_comes
    with ThreadPoolExecutor(1) as pool:
        worker.process(an_event(1))
    assert journal.calls == [[1], [2]]
    assert worker.buried == []


def test_rows_that_are_there_already_cost_a_careful_try_not_a_dead_letter(
    worker: Worker, journal: Journal
) -> None:
    # As after a replay of an event whose record of being processed was pruned: a plain insert
    # violates the key.
    worker.process(an_event(1, fails="constraint", times=1))
    assert journal.rows() == [1]
    assert (len(journal.calls), journal.careful_calls) == (2, 1)
    assert worker.buried == []


@pytest.mark.parametrize(
    ("fails", "state"), [(None, DeadLetter.State.RESOLVED), ("bug", DeadLetter.State.REPLAYED)]
)
def test_a_replay_resolves_its_dead_letter_with_its_own_effect_or_not_at_all(
    worker: Worker, fails: str | None, state: DeadLetter.State
) -> None:
    entry = a_replayed_entry()
    worker.process(a_replay_of(entry, an_event(1, fails=fails)))
    entry.refresh_from_db()
    assert entry.state == state


def a_replayed_entry() -> DeadLetter:
    group, _ = DeadLetterGroup.objects.get_or_create(
        fingerprint="f", first_seen=NOON, last_seen=NOON
    )
    return DeadLetter.objects.create(
        group=group, topic="notes", headers=[], last_failed_at=NOON, state=DeadLetter.State.REPLAYED
    )


def a_replay_of(entry: DeadLetter, event: Event) -> Record:
    record = a_record(event)
    return replace(
        record, headers=[Claim.make(entry.id, entry.token, record.key, record.value).to_header()]
    )


def test_a_record_that_only_says_to_be_a_replay_closes_nothing(
    worker: Worker, journal: Journal
) -> None:
    entry = a_replayed_entry()
    claim = Claim.make(entry.id, UUID(int=0), b"1", envelope.encode(an_event(1)))
    worker.process(replace(a_record(an_event(1)), headers=[claim.to_header()]))
    entry.refresh_from_db()
    assert entry.state == DeadLetter.State.REPLAYED
    assert journal.rows() == [1]


def test_a_claim_taken_from_a_replay_proves_nothing_on_another_record(worker: Worker) -> None:
    entry = a_replayed_entry()
    replay = a_replay_of(entry, an_event(1))
    worker.process(replace(a_record(an_event(2)), headers=replay.headers))
    entry.refresh_from_db()
    assert entry.state == DeadLetter.State.REPLAYED


def test_a_replay_beside_another_record_of_its_event_is_resolved_with_it(
    worker: Worker, journal: Journal
) -> None:
    entries = [a_replayed_entry() for _ in range(2)]
    worker.process(an_event(1), *(a_replay_of(entry, an_event(1)) for entry in entries))
    assert journal.rows() == [1]
    assert set(DeadLetter.objects.values_list("state", flat=True)) == {DeadLetter.State.RESOLVED}


def test_a_replay_beside_another_record_of_its_event_fails_with_it(worker: Worker) -> None:
    first, replay, copy = an_event(1, fails="bug"), a_replayed_entry(), an_event(1, fails="bug")
    worker.process(first, copy, a_replay_of(replay, copy))
    assert [letters.entry_of(record) for record, _, _ in worker.buried] == [None, replay.id]


# One bad event ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["bug", "constraint", "to_fact", "to_fact by a bug"])
def test_a_bad_event_among_500_costs_only_itself(
    worker: Worker, journal: Journal, fails: str
) -> None:
    batch = events_of_different_keys(500)
    batch[240] = an_event(241, key=241, fails=fails)
    worker.process(*batch)
    assert worker.buried_ids == [241]
    assert sorted(journal.rows()) == [n for n in range(1, 501) if n != 241]
    assert processed() == set(journal.rows())
    # Halving 500 takes nine steps; trying each event alone would take 500.
    assert len(journal.calls) <= 1 + 2 * 9 + retry.MAX_ATTEMPTS


@pytest.mark.parametrize(("fails", "buried"), [(None, []), ("bug", [4])])
def test_an_event_that_cannot_be_planned_stands_alone_and_is_applied_if_it_can_be(
    worker: Worker, journal: Journal, fails: str | None, buried: list[int]
) -> None:
    batch = events_of_different_keys(8)
    batch[3] = an_event(4, key=4, plan_fails=True, fails=fails)
    worker.process(*batch)
    assert worker.buried_ids == buried
    assert journal.rows() == [n for n in range(1, 9) if n not in buried]
    assert journal.followed_up[-1] == [5, 6, 7, 8]


def test_bytes_that_are_no_event_cost_only_themselves(worker: Worker, journal: Journal) -> None:
    garbage = Record("notes", 0, 2, b"1", GARBAGE, (), 0)
    worker.process(an_event(1), garbage, an_event(2))
    assert journal.calls == [[1, 2]]
    assert [(record, delivery) for record, _, delivery in worker.buried] == [(garbage, None)]


def test_headers_that_cannot_be_read_make_one_dead_letter(worker: Worker, journal: Journal) -> None:
    unreadable = replace(
        a_record(an_event(2, key=2)), headers_error="The name of a header is not UTF-8."
    )
    worker.process(an_event(1), unreadable, an_event(3))
    assert journal.calls == [[1, 3]]
    assert [(record, str(error)) for record, error, _ in worker.buried] == [
        (unreadable, unreadable.headers_error)
    ]


def test_several_bad_events_share_their_waits(worker: Worker, journal: Journal) -> None:
    bad = [an_event(event_id, key=event_id, fails="bug") for event_id in range(100, 105)]
    worker.process(*events_of_different_keys(20), *bad)
    assert sorted(worker.buried_ids) == [100, 101, 102, 103, 104]
    assert sorted(journal.rows()) == list(range(1, 21))
    assert len(worker.waits) == retry.MAX_ATTEMPTS - 1


def test_later_events_of_a_key_wait_until_the_failing_one_is_applied(
    worker: Worker, journal: Journal
) -> None:
    worker.process(an_event(1), an_event(2, fails="bug", times=3), an_event(3), an_event(4, key=2))
    assert journal.rows() == [4, 1, 2, 3]
    assert worker.buried == []


def test_later_events_of_a_key_go_on_once_the_failing_one_is_a_dead_letter(
    worker: Worker, journal: Journal
) -> None:
    rows_at_burial: list[list[int]] = []
    worker.on_bury = lambda: rows_at_burial.append(journal.rows())
    worker.process(an_event(1), an_event(2, fails="bug"), an_event(3), an_event(4, key=2))
    assert rows_at_burial == [[4, 1]]
    assert journal.rows() == [4, 1, 3]


def test_later_events_of_a_key_wait_in_later_parts_of_the_plan_too(
    worker: Worker, journal: Journal
) -> None:
    journal.part_size = 2
    worker.process(
        an_event(1, fails="bug", times=2), an_event(2, key=2), an_event(3), an_event(4, key=2)
    )
    assert journal.rows() == [2, 4, 1, 3]


class TestAnyBatch:
    """Whatever fails in whatever batch, cut into whatever parts."""

    commands = st.sampled_from(
        [
            {},
            {},
            {"fails": "to_fact"},
            {"fails": "bug"},
            {"fails": "bug", "times": 2},
            {"fails": "constraint"},
            {"fails": "outage", "times": 1},
        ]
    )
    batches = st.lists(st.tuples(st.integers(1, 4), commands), max_size=12)

    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(batches, st.integers(1, 12))
    def test_every_event_is_applied_once_in_the_order_of_its_key_or_buried(
        self, journal: Journal, batch: Sequence[tuple[int, dict[str, Any]]], part_size: int
    ) -> None:
        ProcessedEvent.objects.all().delete()
        journal = Journal(part_size)
        worker = Worker(journal)
        events = [an_event(n, key, **command) for n, (key, command) in enumerate(batch, start=1)]
        hopeless = {
            event.event_id for event in events if event.payload and "times" not in event.payload
        }

        worker.process(*events)

        rows = journal.rows()
        assert sorted(rows) == [
            event.event_id for event in events if event.event_id not in hopeless
        ]
        assert sorted(worker.buried_ids) == sorted(hopeless)
        key_of = {event.event_id: event.key for event in events}
        for key in key_of.values():
            of_key = [event_id for event_id in rows if key_of[event_id] == key]
            assert of_key == sorted(of_key)

        worker.process(*(event for event in events if event.event_id not in hopeless))
        assert journal.rows() == rows
        assert processed() == set(rows)


# Which failures are tried again, and how often ----------------------------------------------------


def test_poison_found_by_the_check_is_a_dead_letter_at_once(
    worker: Worker, journal: Journal
) -> None:
    worker.process(an_event(1, fails="to_fact"))
    assert worker.buried_ids == [1]
    assert (journal.calls, worker.waits) == ([], [])


def test_poison_found_by_the_database_is_a_dead_letter_without_waiting(
    worker: Worker, journal: Journal
) -> None:
    worker.process(an_event(1, fails="constraint"), an_event(2, key=2))
    assert worker.buried_ids == [1]
    assert worker.waits == []


def test_a_bug_gets_its_attempts_and_then_becomes_a_dead_letter(
    worker: Worker, journal: Journal
) -> None:
    before = counted("event_retry_total", type=TYPE, reason="RuntimeError")
    worker.process(an_event(1, fails="bug"), an_event(2))
    [(record, error, delivery)] = worker.buried
    assert str(error) == "a bug in the handler"
    assert delivery is not None
    assert delivery.record is record
    assert delivery.first_failed_at is not None
    assert delivery.attempts == retry.MAX_ATTEMPTS == 3
    assert journal.tries(1) == (1, 3)
    assert len(worker.waits) == 2
    assert all(0 <= wait <= retry.BASE_SECONDS * 2**n for n, wait in enumerate(worker.waits))
    assert counted("event_retry_total", type=TYPE, reason="RuntimeError") == before + 2


def test_a_bug_that_goes_away_costs_no_dead_letter(worker: Worker, journal: Journal) -> None:
    worker.process(an_event(1, fails="bug", times=3))
    assert journal.rows() == [1]
    assert worker.buried == []


def test_an_outage_is_waited_out_however_long_it_takes(worker: Worker, journal: Journal) -> None:
    before = counted("event_retry_total", type="", reason="OperationalError")
    worker.process(an_event(1), an_event(2, key=2, fails="outage", times=6))
    assert journal.rows() == [1, 2]
    assert worker.buried == []
    assert len(worker.waits) == 6
    assert counted("event_retry_total", type="", reason="OperationalError") == before + 6
    # The whole batch is tried again: halving it would only add load to a database in trouble.
    assert journal.calls == [[1, 2]] * 7


def test_an_outage_while_planning_is_waited_out_too(worker: Worker, journal: Journal) -> None:
    outages = [OperationalError(), OperationalError()]
    plan = journal.plan

    def plan_in_an_outage(events: Sequence[Event]) -> list[list[Event]]:
        if outages:
            raise outages.pop()
        return plan(events)

    journal.plan = plan_in_an_outage  # type: ignore[method-assign]
    Worker(journal).process(an_event(1))
    assert journal.rows() == [1]


def test_a_follow_up_that_fails_for_a_while_is_repeated_without_applying_again(
    worker: Worker, journal: Journal
) -> None:
    journal.follow_up_failures = [
        OperationalError(),
        RuntimeError("the cache is odd"),
        RuntimeError("still"),
    ]
    worker.process(an_event(1))
    assert journal.rows() == [1]
    assert journal.followed_up == [[1]] * 4
    assert worker.buried == []


# Batches that are too much at once ----------------------------------------------------------------


@pytest.mark.parametrize("sqlstate", ["57014", "53200", "53400"])
def test_what_is_too_much_at_once_is_done_in_halves(
    worker: Worker, journal: Journal, sqlstate: str
) -> None:
    journal.most, journal.too_much = 3, partial(raises, sqlstate)
    worker.process(*events_of_different_keys(8))
    assert sorted(journal.rows()) == list(range(1, 9))
    assert worker.buried == []
    # Twice all together, twice one of two fours, then twos.
    assert [len(call) for call in journal.calls] == [8, 8, 4, 4, 2, 2, 2, 2]


def test_what_was_too_much_is_remembered_for_the_next_batches_until_enough_has_gone_well(
    worker: Worker, journal: Journal
) -> None:
    """A statement of a full batch takes longer than `statement_timeout` allows."""

    def take_long(events: list[int]) -> None:
        execute("SET LOCAL statement_timeout = '100ms'")
        execute("SELECT pg_sleep(1) WHERE %s > 4", len(events))

    def sizes_of(first: int) -> list[int]:
        journal.calls.clear()
        worker.process(*(an_event(first + number, key=1 + number) for number in range(8)))
        return [len(call) for call in journal.calls]

    journal.on_apply = take_long
    assert sizes_of(100) == [8, 8, 4, 4]
    assert counted("transaction_events_limit") == 4
    assert sizes_of(200) == [4, 4]
    # Somebody has raised the time-out. No batch is larger for it before so much has gone well.
    journal.on_apply = lambda _events: None
    later = [sizes_of(1_000 * number) for number in range(1, GROW_AFTER // 2)]
    assert later == [[4, 4]] * 8 + [[8]]
    assert counted("transaction_events_limit") == 0
    assert worker.buried == []


def test_events_of_one_key_stay_in_order_in_limited_portions(
    worker: Worker, journal: Journal
) -> None:
    journal.most = 3
    worker.process(*events_of_different_keys(8))
    worker.process(
        *(
            an_event(number, key=1 + number % 2, fails="bug" if number == 21 else "")
            for number in range(20, 28)
        )
    )
    assert journal.rows()[8:] == [20, 22, 24, 26, 23, 25, 27]
    assert worker.buried_ids == [21]


def test_the_events_of_one_key_that_are_too_much_together_are_done_one_by_one(
    worker: Worker, journal: Journal
) -> None:
    journal.most = 3
    worker.process(*(an_event(number) for number in range(1, 9)))
    assert journal.rows() == list(range(1, 9))
    assert worker.buried == []


def test_an_event_that_is_too_much_alone_waits_and_is_no_dead_letter(
    worker: Worker, journal: Journal
) -> None:
    """Somebody set a limit that is too low; once it is raised, the event has its effect."""
    journal.most = 0

    def raise_the_limit() -> None:
        if len(worker.waits) == 5 * retry.MAX_ATTEMPTS:
            journal.most = 1

    worker.on_wait = raise_the_limit
    worker.process(an_event(1))
    assert journal.rows() == [1]
    assert worker.buried == []


def test_a_plan_that_is_too_much_at_once_is_made_in_halves(
    worker: Worker, journal: Journal
) -> None:
    plan = journal.plan

    def plan_a_few(events: Sequence[Event]) -> list[list[Event]]:
        if len(events) > 3:
            raises("57014")
        return plan(events)

    journal.plan = plan_a_few  # type: ignore[method-assign]
    Worker(journal).process(*events_of_different_keys(8))
    assert journal.calls == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_a_batch_that_finds_the_lock_table_nearly_full_is_done_all_the_same(
    worker: Worker, journal: Journal
) -> None:
    with lock_table_with_room_for(60):
        worker.process(*events_of_different_keys(200))
    assert sorted(journal.rows()) == list(range(1, 201))
    assert all(len(call) < 200 for call in journal.calls)
    assert worker.buried == []


@contextmanager
def lock_table_with_room_for(locks: int) -> Iterator[None]:
    """Hold all the locks that PostgreSQL has room for but so many."""
    place = connection.settings_dict
    address = {"host": place["HOST"], "port": place["PORT"], "dbname": place["NAME"]}
    with psycopg.connect(
        **address, user=place["USER"], password=place["PASSWORD"], autocommit=True
    ) as other:
        with suppress(psycopg.errors.OutOfMemory):
            for first in itertools.count(step=100):
                other.execute(
                    "SELECT pg_advisory_lock(7, n) FROM generate_series(%s::int, %s::int) AS n",
                    [first, first + 99],
                )
        other.execute(
            "SELECT pg_advisory_unlock(7, n) FROM generate_series(0, %s::int) AS n", [locks - 1]
        )
        yield
        # A server gives the locks of a closed connection back when it gets round to that.
        other.execute("SELECT pg_advisory_unlock_all()")


def test_the_largest_batch_that_settings_allow_finds_room_for_its_locks() -> None:
    with transaction.atomic():
        locks.acquire_keys(range(1, 1 + environment.MAX_EVENTS_IN_HAND))


# Dead letters must be durable ---------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["to_fact", "bug"])
def test_the_batch_is_not_done_before_its_dead_letter_is_written(
    worker: Worker, journal: Journal, fails: str
) -> None:
    worker.dead_letter_failures = [PublishTimedOut()] * 10
    worker.process(an_event(1, fails=fails), an_event(2))
    assert worker.buried_ids == [1]
    assert len(worker.waits) >= 10
    assert journal.rows() == [2]


@pytest.mark.parametrize("fails", ["to_fact", "bug"])
def test_a_flood_of_dead_letters_stops_the_worker(
    worker: Worker, journal: Journal, fails: str
) -> None:
    worker.dead_letter_failures = [DeadLetterFlood()]
    with pytest.raises(DeadLetterFlood):
        worker.process(an_event(1, fails=fails), an_event(2))
    assert processed() == set()


def test_a_worker_told_to_stop_leaves_the_failing_event_to_the_next(
    worker: Worker, journal: Journal
) -> None:
    def stop() -> None:
        raise WorkerStopping

    worker.on_wait = stop
    batch = [an_event(1, fails="bug", times=3), an_event(2, key=2)]
    with pytest.raises(WorkerStopping):
        worker.process(*batch)
    assert journal.rows() == [2]
    Worker(journal).process(*batch)
    assert journal.rows() == [2, 1]
    assert worker.buried == []


def test_a_worker_told_to_stop_during_an_outage_leaves_the_batch_to_the_next(
    worker: Worker, journal: Journal
) -> None:
    def stop() -> None:
        raise WorkerStopping

    worker.on_wait = stop
    with pytest.raises(WorkerStopping):
        worker.process(an_event(1, fails="outage"), an_event(2, key=2))
    assert journal.calls == [[1, 2]]
    assert (processed(), worker.buried) == (set(), [])


# Partitions that leave ----------------------------------------------------------------------------


def test_records_of_a_partition_that_left_are_another_consumers(
    worker: Worker, journal: Journal
) -> None:
    worker.lost = {1}
    worker.process(a_record(an_event(1), partition=1), a_record(an_event(2), partition=0))
    assert journal.calls == journal.followed_up == [[2]]
    assert processed() == {2}


def test_a_batch_of_which_nothing_is_ours_any_more_is_left_alone(
    worker: Worker, journal: Journal
) -> None:
    worker.lost = {0}
    worker.process(an_event(1), an_event(2))
    assert (journal.calls, journal.followed_up) == ([], [])


def test_a_partition_that_leaves_while_an_event_waits_takes_the_event_along(
    worker: Worker, journal: Journal
) -> None:
    worker.on_wait = lambda: worker.lost.add(1)
    worker.process(
        a_record(an_event(1, key=1, fails="bug"), partition=1),
        a_record(an_event(2, key=1), partition=1),
        a_record(an_event(3, key=3), partition=0),
    )
    assert journal.rows() == [3]
    assert worker.buried == []


@pytest.mark.parametrize("fails", ["to_fact", "bug"])
def test_what_has_left_is_buried_by_whoever_has_it_now(
    worker: Worker, journal: Journal, fails: str
) -> None:
    """It leaves while its dead letter waits for Kafka, and is not ours to bury any more."""
    worker.on_wait = lambda: worker.lost.add(1)
    worker.dead_letter_failures = [PublishTimedOut()]
    worker.process(
        a_record(an_event(1, key=1, fails=fails), partition=1),
        a_record(an_event(2, key=2), partition=0),
    )
    assert journal.rows() == [2]
    assert worker.buried == []


def test_bytes_that_are_no_event_are_not_buried_once_they_have_left(worker: Worker) -> None:
    worker.lost = {1}
    worker.process(Record("notes", 1, 2, b"1", GARBAGE, (), 0))
    assert worker.buried == []


# Events too big for one transaction ---------------------------------------------------------------


def test_an_event_may_take_several_transactions_and_is_processed_at_the_end(
    worker: Worker, journal: Journal
) -> None:
    journal.parts_of_one = 3
    seen: list[set[int]] = []

    def look() -> bool:
        seen.append(processed())
        return False

    worker.stops = look
    worker.process(an_event(1))
    assert execute("SELECT event_id, part FROM journal ORDER BY n") == [(1, 1), (1, 2), (1, 3)]
    assert execute("SELECT count(DISTINCT xid) FROM journal") == [(3,)]
    assert seen == [set(), set(), set()]
    assert worker.waits == []
    assert journal.followed_up == [[1]]
    assert processed() == {1}


def test_a_worker_that_another_overtakes_between_the_transactions_does_no_more(
    worker: Worker, journal: Journal
) -> None:
    journal.parts_of_one = 2

    def be_overtaken() -> bool:
        if worker.asked == 2:
            Worker(journal).process(an_event(1))
        return False

    worker.stops = be_overtaken
    worker.process(an_event(1))
    assert execute("SELECT part FROM journal ORDER BY n") == [(1,), (1,), (2,)]
    assert processed() == {1}


def test_a_crash_between_the_transactions_starts_the_event_again(
    worker: Worker, journal: Journal
) -> None:
    journal.parts_of_one = 2

    def crash() -> bool:
        if worker.asked == 2:
            raise SystemExit
        return False

    worker.stops = crash
    with pytest.raises(SystemExit):
        worker.process(an_event(1))
    assert (execute("SELECT part FROM journal"), processed()) == ([(1,)], set())
    Worker(journal).process(an_event(1))
    assert execute("SELECT part FROM journal ORDER BY n") == [(1,), (1,), (2,)]
    assert processed() == {1}


# Told to stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts_of_one", [1, 3])
def test_a_worker_told_to_stop_does_so_between_any_two_transactions(
    worker: Worker, journal: Journal, parts_of_one: int
) -> None:
    """Ten waiting posts of one author to many followers, a transaction or more each."""
    journal.part_size, journal.parts_of_one = 1, parts_of_one
    worker.stops = lambda: worker.asked > 2
    batch = [an_event(number) for number in range(1, 11)]
    with pytest.raises(WorkerStopping):
        worker.process(*batch)
    assert execute("SELECT count(DISTINCT xid) FROM journal") == [(2,)]
    assert worker.buried == []
    Worker(journal).process(*batch)
    assert processed() == set(range(1, 11))


def test_a_worker_told_to_stop_does_so_between_any_two_dead_letters(worker: Worker) -> None:
    worker.stops = lambda: worker.asked > 2
    with pytest.raises(WorkerStopping):
        worker.process(*[Record("notes", 0, n, b"1", GARBAGE, (), 0) for n in range(10)])
    assert [record.offset for record, _, _ in worker.buried] == [0, 1]
