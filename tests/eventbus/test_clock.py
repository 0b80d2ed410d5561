"""Ids are minted by PostgreSQL's clock: what hosts believe the time to be has no part in who is
first.
"""

import time
from collections.abc import Callable, Iterator

import pytest
from django.db import connection

from eventbus import envelope
from eventbus.exceptions import IdsUnavailable, InvalidEvent
from eventbus.ids import clock, node_lease
from eventbus.ids.snowflake import compose, milliseconds_of
from tests.eventbus.conftest import StartScript, output_of
from tests.eventbus.events import an_event, eventually
from tests.eventbus.journal import execute

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventbus"])

HOUR_MS = 3_600_000

# Prints an id minted on a host whose clock is wrong by so many seconds.
MINT_BY_A_WRONG_CLOCK = """
import sys, time
wrong_by = int(sys.argv[1])
true_time, true_time_ns = time.time, time.time_ns
time.time = lambda: true_time() + wrong_by
time.time_ns = lambda: true_time_ns() + wrong_by * 10**9
import django
django.setup()
from eventbus.ids import node_lease
print(node_lease.next_id())
"""


@pytest.fixture
def set_database_clock() -> Iterator[Callable[[int], None]]:
    """Return what sets PostgreSQL's clock ahead by so many milliseconds, for sessions that begin
    after this.
    """
    name = connection.settings_dict["NAME"]
    execute("CREATE SCHEMA wrong")
    execute("CREATE TABLE wrong.by AS SELECT interval '0' AS ahead, 0.0 AS slow")
    execute(
        "CREATE FUNCTION wrong.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
        "'SELECT pg_catalog.clock_timestamp() + ahead FROM wrong.by, pg_sleep(slow)'"
    )
    execute(f'ALTER DATABASE "{name}" SET search_path = wrong, pg_catalog, public')
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]

    def set_clock(wrong_by_ms: int) -> None:
        execute("UPDATE wrong.by SET ahead = %s * interval '1 ms'", wrong_by_ms)

    yield set_clock
    node_lease.forget()
    execute(f'ALTER DATABASE "{name}" RESET search_path')
    execute("DROP SCHEMA wrong CASCADE")
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]


def set_host_clock(monkeypatch: pytest.MonkeyPatch, by_ms: int) -> None:
    true_time_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_time_ns() + by_ms * clock.NS_PER_MS)


def mint() -> int:
    """Return an id, once the keeper has seen to what is in the way."""
    eventually(can_mint)
    return node_lease.next_id()


def can_mint() -> bool:
    try:
        node_lease.next_id()
    except IdsUnavailable:
        return False
    return True


@pytest.mark.parametrize("seconds", [2, -2, 3_600])
def test_of_two_ids_the_later_is_the_higher_though_one_host_has_a_wrong_clock(
    start_script: StartScript, seconds: int
) -> None:
    before = node_lease.next_id()
    elsewhere = int(output_of(start_script(MINT_BY_A_WRONG_CLOCK, str(seconds))))
    after = node_lease.next_id()
    assert before < elsewhere < after


def test_ids_have_the_time_of_postgresql(set_database_clock: Callable[[int], None]) -> None:
    set_database_clock(3 * HOUR_MS)
    ahead_ms = milliseconds_of(node_lease.next_id()) - clock.host_ms()
    assert abs(ahead_ms - 3 * HOUR_MS) < HOUR_MS


def test_a_clock_of_postgresql_that_steps_back_leaves_ids_rising(
    set_database_clock: Callable[[int], None],
) -> None:
    first = node_lease.next_id()
    set_database_clock(-60_000)
    node_lease.keep().renew_soon()
    eventually(lambda: clock.now_ms() < clock.host_ms() - 30_000)
    second, third = node_lease.next_id(), node_lease.next_id()
    assert first < second < third


def test_a_clock_of_postgresql_that_was_hours_ahead_does_not_leave_ids_in_the_future(
    set_database_clock: Callable[[int], None],
) -> None:
    set_database_clock(48 * HOUR_MS)
    early = node_lease.next_id()
    set_database_clock(0)
    node_lease.keep().renew_soon()
    eventually(lambda: milliseconds_of(mint()) < clock.host_ms() + HOUR_MS)
    assert mint() != early


def test_a_host_whose_clock_is_set_reads_postgresqls_again_before_it_mints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = node_lease.next_id()
    set_host_clock(monkeypatch, by_ms=HOUR_MS)
    with pytest.raises(IdsUnavailable, match="was set, or the host was suspended"):
        node_lease.two_ids_without_waiting()
    second = mint()
    assert second > first
    assert milliseconds_of(second) - milliseconds_of(first) < HOUR_MS / 2


def test_who_is_told_of_a_clock_that_was_set_has_it_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe is told, and nobody else may come: a process that is not ready gets no posts. By
    itself the keeper would not look for minutes.
    """
    monkeypatch.setattr(node_lease, "FIRST_LEASE_MS", node_lease.LEASE_MS)
    node_lease.next_id()
    set_host_clock(monkeypatch, by_ms=HOUR_MS)
    assert "was set, or the host was suspended" in node_lease.keep().trouble()
    eventually(lambda: not node_lease.keep().trouble())


@pytest.mark.parametrize("faster_by", [0.08, -0.08])
def test_nothing_is_minted_by_a_clock_that_is_slowly_put_right(
    monkeypatch: pytest.MonkeyPatch, faster_by: float
) -> None:
    """A time service may have a host's clocks go faster or slower by a tenth (`adjtimex`)."""
    clock.read()
    run_on(monkeypatch, seconds=60, faster_by=faster_by)
    with pytest.raises(IdsUnavailable, match="was set, or the host was suspended"):
        clock.exact_now_ms()


def test_the_time_goes_on_while_the_host_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock.read()
    in_a_minute_ms = clock.now_ms() + 60_000
    run_on(monkeypatch, seconds=60, suspended=True)
    assert abs(clock.exact_now_ms() - in_a_minute_ms) < 1_000


def run_on(
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
    faster_by: float = 0.0,
    *,
    suspended: bool = False,
) -> None:
    """Have Linux's clocks be so many seconds further on, as if all had passed since just now."""
    passed_ns = seconds * 10**9
    corrected_ns = int(passed_ns * (1 + faster_by))
    awake = 0 if suspended else 1
    ahead_ns = {
        time.CLOCK_REALTIME: corrected_ns,
        time.CLOCK_BOOTTIME: corrected_ns,
        time.CLOCK_MONOTONIC: awake * corrected_ns,
        time.CLOCK_MONOTONIC_RAW: awake * passed_ns,
    }
    true_time_ns = time.clock_gettime_ns
    monkeypatch.setattr(
        time, "clock_gettime_ns", lambda kind: true_time_ns(kind) + ahead_ns.get(kind, 0)
    )
    monkeypatch.setattr(time, "time_ns", lambda: time.clock_gettime_ns(time.CLOCK_REALTIME))


def test_nothing_is_minted_by_a_reading_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    node_lease.next_id()
    monkeypatch.setattr(clock, "DRIFT", 1e9)
    with pytest.raises(IdsUnavailable, match="too long ago"):
        node_lease.two_ids_without_waiting()


def test_nothing_is_minted_by_a_postgresql_that_takes_too_long_to_tell_the_time(
    set_database_clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "MAX_ROUND_TRIP_MS", 50)
    monkeypatch.setattr(clock, "MAX_DOUBT_MS", 90)
    clock.forget()
    execute("UPDATE wrong.by SET slow = 0.2")
    with pytest.raises(IdsUnavailable, match="took too long to read"):
        node_lease.next_id()
    execute("UPDATE wrong.by SET slow = 0")
    assert mint()


def test_before_postgresqls_clock_was_read_there_is_this_hosts() -> None:
    clock.forget()
    assert abs(clock.now_ms() - clock.host_ms()) < 1_000
    with pytest.raises(IdsUnavailable, match="has not been read yet"):
        clock.exact_now_ms()


# Ids from the future ------------------------------------------------------------------------------


def bytes_of_an_event_minted_in(ahead_ms: int) -> bytes:
    event_id = compose(clock.now_ms() + ahead_ms, 1, 1)
    return envelope.encode(an_event(41)).replace(b'"41"', b'"%d"' % event_id)


def test_an_event_from_after_tomorrow_is_poison() -> None:
    with pytest.raises(InvalidEvent, match="event_id is an id from 26 hours in the future"):
        envelope.decode(bytes_of_an_event_minted_in(26 * HOUR_MS + HOUR_MS // 2), b"1")


def test_an_event_from_within_a_day_is_none() -> None:
    assert envelope.decode(bytes_of_an_event_minted_in(23 * HOUR_MS), b"1")


def test_a_worker_with_a_wrong_clock_tells_the_future_by_postgresqls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_host_clock(monkeypatch, by_ms=-48 * HOUR_MS)
    clock.read()
    assert envelope.decode(bytes_of_an_event_minted_in(0), b"1")
    monkeypatch.undo()
