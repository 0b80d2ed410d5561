"""Connections of threads that cannot wait: bounded, refused while PostgreSQL is away, given up on a
standby.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import InternalError, OperationalError, connection

from eventbus import breaker, cells
from eventbus.breaker import FAILURES
from eventbus.database.deadline import answer_within

pytestmark = pytest.mark.django_db(transaction=True)

SERVER = breaker.of(cells.own()).postgresql


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    SERVER.succeeded()
    yield
    SERVER.succeeded()
    connection.close()


def ask(sql: str) -> object:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        row: tuple[object] | None = cursor.fetchone()
    return row and row[0]


def backend() -> object:
    return ask("SELECT pg_backend_pid()")


def test_a_query_ends_with_the_time_its_thread_has() -> None:
    with pytest.raises(OperationalError, match="did not answer in time"), answer_within(0.3):
        ask("SELECT pg_sleep(30)")
    assert SERVER._failures == 1


def test_a_connection_is_waited_for_no_longer_than_its_thread_has_time() -> None:
    with ThreadPoolExecutor(1) as threads:
        pool = connection.pool  # type: ignore[attr-defined]
        taken = [pool.getconn() for _ in range(pool.max_size)]
        try:
            started = time.monotonic()
            with pytest.raises(OperationalError, match="couldn't get a connection after 0"):
                threads.submit(ask_within, 0.3).result()
            assert time.monotonic() - started < pool.timeout
        finally:
            for each in taken:
                pool.putconn(each)


def ask_within(seconds: float) -> object:
    with answer_within(seconds):
        return ask("SELECT 1")


def test_the_answer_to_a_question_given_up_is_not_taken_for_the_next() -> None:
    before = backend()
    with pytest.raises(OperationalError), answer_within(0.3):
        ask("SELECT 'late' FROM pg_sleep(1)")
    connection.close()
    assert ask("SELECT 'mine'") == "mine"
    assert backend() != before


def test_without_a_deadline_a_query_takes_as_long_as_it_takes() -> None:
    with answer_within(0.2):
        assert ask("SELECT 1") == 1
    time.sleep(0.3)
    assert ask("SELECT 'slow' FROM pg_sleep(0.4)") == "slow"


def test_while_postgresql_is_away_one_thread_at_a_time_asks_it() -> None:
    connection.close()
    for _ in range(FAILURES):
        SERVER.failed("away")
    trial = SERVER.enter()  # somebody tries
    with pytest.raises(OperationalError, match="has not answered"), answer_within(5):
        ask("SELECT 1")
    assert ask("SELECT 1") == 1, "who has no deadline, such as a worker, waits and asks"
    connection.close()
    SERVER.gave_up(trial)
    with answer_within(5):
        assert ask("SELECT 1") == 1, "the next tries"
    assert not SERVER.is_open


def test_a_session_that_can_only_read_is_given_up() -> None:
    """As after a failover: the server is a standby now, and this session would be one of it for as
    long as it lasts.
    """
    before = backend()
    ask("SELECT set_config('default_transaction_read_only', 'on', false)")
    with pytest.raises(InternalError, match="read-only"):
        ask("CREATE TABLE never ()")
    connection.close()
    assert backend() != before


def test_sessions_are_as_the_promise_needs_them() -> None:
    shown = {
        name: ask(f"SHOW {name}")
        for name in ("synchronous_commit", "default_transaction_isolation")
    }
    assert shown == {"synchronous_commit": "on", "default_transaction_isolation": "read committed"}
    parameters = connection.get_connection_params()
    assert parameters["target_session_attrs"] == "read-write"
    assert (
        parameters["keepalives_idle"]
        + parameters["keepalives_interval"] * parameters["keepalives_count"]
        < 20
    )
    assert parameters["tcp_user_timeout"] < 20_000
