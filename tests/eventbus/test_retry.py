"""The retry policy, on the errors that PostgreSQL really answers."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from hypothesis import given
from hypothesis import strategies as st

from eventbus import retry
from eventbus.exceptions import (
    InvalidEvent,
    ProducerQueueFull,
    PublishFailed,
    PublishTimedOut,
    UndecodableEvent,
    UnknownEventType,
    WorkerStopping,
)
from eventbus.models import ProcessedEvent

INSERT = "INSERT INTO processed_events (event_id, type) VALUES "
CHANGE = "UPDATE processed_events SET type = type || 'x' WHERE event_id = 1"


def execute(*statements: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@contextmanager
def another_connection() -> Iterator[BaseDatabaseWrapper]:
    other = connection.copy()
    try:
        yield other
    finally:
        other.close()


def deadlock() -> None:
    everyone_has_one = Barrier(2)

    def take(first: int, second: int) -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [first])
                everyone_has_one.wait()
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [second])
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as workers:
        embrace: list[Future[None]] = [workers.submit(take, 1, 2), workers.submit(take, 2, 1)]
    for one in embrace:
        one.result()


def serialization_failure() -> None:
    execute(INSERT + "(1, 'note.taken')")
    with transaction.atomic(), connection.cursor() as cursor, another_connection() as other:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT FROM processed_events")
        other.cursor().execute(CHANGE)
        cursor.execute(CHANGE)


def lock_timeout() -> None:
    with another_connection() as other:
        other.set_autocommit(False)
        other.cursor().execute("SELECT pg_advisory_xact_lock(1)")
        execute("SET LOCAL lock_timeout = '10ms'", "SELECT pg_advisory_xact_lock(1)")


def statement_timeout() -> None:
    execute("SET LOCAL statement_timeout = '10ms'", "SELECT pg_sleep(10)")


def terminated_backend() -> None:
    execute("SELECT pg_terminate_backend(pg_backend_pid())")


def idle_in_transaction_timeout() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '10ms'")
        time.sleep(0.1)
        cursor.execute("SELECT 1")


def read_only_standby() -> None:
    execute("SET TRANSACTION READ ONLY", INSERT + "(1, 'note.taken')")


def connection_closed_under_us() -> None:
    with transaction.atomic():
        connection.connection.close()
        execute("SELECT 1")


def server_away() -> None:
    nowhere = connection.settings_dict | {"HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    DatabaseWrapper(nowhere).cursor()


def unique_violation() -> None:
    execute(INSERT + "(1, 'note.taken')", INSERT + "(1, 'note.taken')")


def null_violation() -> None:
    execute(INSERT + "(1, NULL)")


def nul_in_text() -> None:
    ProcessedEvent.objects.create(event_id=1, type="note\0taken")


def text_too_long() -> None:
    ProcessedEvent.objects.create(event_id=1, type="x" * 65)


def numeric_overflow() -> None:
    execute(INSERT + "(9223372036854775808, 'note.taken')")


def missing_table() -> None:
    execute("SELECT FROM no_such_table")


TRANSIENT = [
    deadlock,
    serialization_failure,
    lock_timeout,
    statement_timeout,
    terminated_backend,
    idle_in_transaction_timeout,
    read_only_standby,
    connection_closed_under_us,
    server_away,
]
POISON = [unique_violation, null_violation, nul_in_text, text_too_long, numeric_overflow]
RETRYABLE = [missing_table]


def classified(error: BaseException) -> str:
    kinds = {"transient": retry.is_transient(error), "poison": retry.is_poison(error)}
    return " and ".join(kind for kind, holds in kinds.items() if holds) or "retryable"


@pytest.mark.django_db(transaction=True, available_apps=["eventbus"])
@pytest.mark.parametrize(
    ("provoke", "expected"),
    [
        *((provoke, "transient") for provoke in TRANSIENT),
        *((provoke, "poison") for provoke in POISON),
        *((provoke, "retryable") for provoke in RETRYABLE),
    ],
)
def test_what_postgresql_answers(provoke: Callable[[], None], expected: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        provoke()
    assert classified(caught.value) == expected


@pytest.mark.django_db(transaction=True, available_apps=["eventbus"])
@pytest.mark.parametrize("provoke", [*TRANSIENT, *POISON, *RETRYABLE])
def test_postgresql_is_unreachable_only_when_it_could_not_be_talked_to(
    provoke: Callable[[], None],
) -> None:
    with pytest.raises(DatabaseError) as caught:
        provoke()
    unreachable = {terminated_backend, connection_closed_under_us, server_away}
    assert retry.is_unreachable(caught.value) == (provoke in unreachable)


@pytest.mark.parametrize("error", [PublishFailed(), PublishTimedOut(), ProducerQueueFull()])
def test_what_kafka_did_not_take_is_tried_for_as_long_as_it_takes(error: Exception) -> None:
    assert classified(error) == "transient"


@pytest.mark.parametrize("error", [UndecodableEvent(), InvalidEvent(), UnknownEventType()])
def test_an_event_at_fault_itself_is_never_tried_again(error: Exception) -> None:
    assert classified(error) == "poison"


@pytest.mark.parametrize(
    "error", [RuntimeError(), KeyError("x"), ZeroDivisionError(), MemoryError(), OSError()]
)
def test_anything_else_is_tried_a_few_times(error: Exception) -> None:
    assert classified(error) == "retryable"


@given(st.integers(1, 10_000), st.floats(0.01, 100))
def test_the_backoff_doubles_up_to_its_cap(attempt: int, cap: float) -> None:
    ceiling = min(cap, retry.BASE_SECONDS * 2.0 ** min(attempt - 1, 100))
    assert 0 <= retry.backoff(attempt, cap) <= ceiling


def test_the_backoff_uses_all_of_its_range_so_that_workers_spread_out() -> None:
    waits = [retry.backoff(100) for _ in range(1_000)]
    assert min(waits) < retry.TRANSIENT_CAP_SECONDS / 10
    assert max(waits) > retry.TRANSIENT_CAP_SECONDS * 9 / 10


def test_what_may_work_later_is_repeated_with_growing_waits_until_it_works() -> None:
    outcomes: list[PublishFailed | str] = [
        PublishTimedOut(),
        ProducerQueueFull(),
        PublishFailed(),
        "done",
    ]
    waits: list[float] = []

    def act() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert retry.until_possible(waits.append, act) == "done"
    assert len(waits) == 3
    assert all(wait <= retry.BASE_SECONDS * 2**n for n, wait in enumerate(waits))


@pytest.fixture
def impatient(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have nobody wait long for an answer; what is left of the connection goes with the test."""
    monkeypatch.setattr(retry, "ANSWER_SECONDS", 0.3)
    yield
    connection.close()


@pytest.mark.django_db(transaction=True, available_apps=["eventbus"])
def test_an_attempt_that_gets_no_answer_is_given_up_and_the_next_one_has_another_connection(
    impatient: None,
) -> None:
    """As from a server that vanished behind a proxy, which keeps the connection open."""
    seconds = [600, 0]
    used: list[int] = []

    def act() -> None:
        with connection.cursor() as cursor:
            used.append(connection.connection.info.backend_pid)
            cursor.execute("SELECT pg_sleep(%s)", [seconds.pop(0)])

    retry.until_possible(lambda _seconds: None, act)
    assert len(set(used)) == 2


@pytest.mark.django_db(transaction=True, available_apps=["eventbus"])
def test_what_gets_no_answer_again_and_again_may_be_too_much(
    impatient: None,
) -> None:
    waits: list[float] = []
    with pytest.raises(OperationalError) as raised:
        retry.until_too_much(waits.append, execute, "SELECT pg_sleep(600)")
    assert retry.is_too_much(raised.value)
    assert len(waits) == retry.SIZE_ATTEMPTS - 1


def test_waiting_ends_by_whatever_the_wait_raises() -> None:
    def leave(_seconds: float) -> None:
        raise WorkerStopping

    def act() -> None:
        raise PublishTimedOut

    with pytest.raises(WorkerStopping):
        retry.until_possible(leave, act)


def test_a_label_for_metrics_is_the_class_of_the_error() -> None:
    assert retry.reason(InvalidEvent("user 12345")) == "InvalidEvent"
