"""Leases of snowflake nodes: whatever processes and clocks do, two holders never mint the same
id.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import psycopg
import pytest
from django.db import connection, transaction

from eventbus.exceptions import IdsUnavailable
from eventbus.ids import clock, node_lease
from eventbus.ids.node_lease import LeaseKeeper
from eventbus.ids.snowflake import NODES, Generator, milliseconds_of
from eventbus.models import SnowflakeNode
from tests.eventbus.conftest import StartScript, output_of
from tests.eventbus.events import eventually
from tests.eventbus.journal import execute

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventbus"])

# Prints a line for each of its processes and turns: the process, then the ids it minted.
MINT_IN_A_FAMILY = """
import multiprocessing, os
import django
django.setup()
from django.db import connection
from eventbus.ids import node_lease

def mint(_turn):
    return os.getpid(), *(node_lease.next_id() for _ in range(2_000))

print(*mint(0))
connection.close()
connection.close_pool()
with multiprocessing.get_context("fork").Pool(3) as children:
    turns = children.map_async(mint, range(6), chunksize=1)
    print(*mint(0))
    for turn in turns.get():
        print(*turn)
"""


@pytest.fixture(autouse=True)
def no_nodes_yet(transactional_db: None) -> None:
    SnowflakeNode.objects.all().delete()


@pytest.fixture
def take() -> Iterator[Callable[[], LeaseKeeper]]:
    """Return keepers that have a lease, or were refused one."""
    taken: list[LeaseKeeper] = []

    def take_lease() -> LeaseKeeper:
        taken.append(LeaseKeeper())
        taken[-1].next_id()
        return taken[-1]

    yield take_lease
    for keeper in taken:
        keeper.stop(release=True)


@contextmanager
def out_of_reach() -> Iterator[None]:
    """Have PostgreSQL refuse whatever has to do with leases."""
    execute("ALTER TABLE snowflake_nodes RENAME TO out_of_reach")
    try:
        yield
    finally:
        execute("ALTER TABLE out_of_reach RENAME TO snowflake_nodes")


@contextmanager
def hanging() -> Iterator[None]:
    """Have PostgreSQL not answer whatever has to do with leases."""
    with psycopg.connect(**connection.get_connection_params() | {"cursor_factory": None}) as holder:
        holder.execute("LOCK TABLE snowflake_nodes IN ACCESS EXCLUSIVE MODE")
        yield
        holder.rollback()


def only_nodes(*free_since: int) -> None:
    """Have nodes 0, 1, … alone, free since these times."""
    SnowflakeNode.objects.bulk_create(
        SnowflakeNode(node_id=n, leased_until_ms=ms) for n, ms in enumerate(free_since)
    )


def node_of(snowflake_id: int) -> int:
    return snowflake_id >> 12 & 0x3FF


def range_of(keeper: LeaseKeeper) -> Generator:
    assert keeper.generator is not None
    return keeper.generator


def use_up(keeper: LeaseKeeper) -> None:
    range_of(keeper).until_ms = range_of(keeper).last_ms - 1


def can_mint(mint: Callable[[], object]) -> bool:
    try:
        mint()
    except IdsUnavailable:
        return False
    return True


def test_the_first_lease_ever_finds_all_nodes_free(take: Callable[[], LeaseKeeper]) -> None:
    take()
    assert SnowflakeNode.objects.count() == NODES
    assert SnowflakeNode.objects.filter(owner=None).count() == NODES - 1


def test_two_leases_never_share_a_node(take: Callable[[], LeaseKeeper]) -> None:
    keepers = [take() for _ in range(10)]
    assert len({range_of(keeper).node_id for keeper in keepers}) == 10


def test_a_process_and_its_forked_children_never_mint_the_same_id(
    start_script: StartScript,
) -> None:
    output = output_of(start_script(MINT_IN_A_FAMILY))
    turns = [[int(word) for word in line.split()] for line in output.splitlines()]
    minted = list(chain(*(ids for _, *ids in turns)))
    assert len(minted) == len(set(minted)) == 8 * 2_000
    nodes = {(process, node_of(one)) for process, *ids in turns for one in ids}
    processes = {process for process, *_ in turns}
    assert len({node for _, node in nodes}) == len(nodes) == len(processes) > 1


def test_a_process_keeps_its_lease_and_gives_it_back_at_its_end() -> None:
    first, second = node_lease.next_id(), node_lease.next_id()
    assert first < second
    assert node_of(first) == node_of(second)
    node_lease.release()
    assert not SnowflakeNode.objects.exclude(owner=None).exists()


def test_when_all_nodes_are_leased_there_is_none_to_have(take: Callable[[], LeaseKeeper]) -> None:
    only_nodes(0)
    take()
    with pytest.raises(
        IdsUnavailable, match=r"All 1024 snowflake nodes are leased; the next one is free in \d+ s"
    ):
        take()


def test_a_released_node_goes_on_after_its_last_id(take: Callable[[], LeaseKeeper]) -> None:
    only_nodes(0)
    keeper = take()
    last = max(keeper.next_id() for _ in range(1_000))
    keeper.stop(release=True)
    eventually(lambda: milliseconds_of(last) < clock.now_ms())
    successor = take().next_id()
    assert node_of(successor) == node_of(last)
    assert successor > last


def test_who_holds_a_released_range_still_mints_nothing_from_it(
    take: Callable[[], LeaseKeeper],
) -> None:
    keeper = take()
    generator = range_of(keeper)
    keeper.stop(release=True)
    with pytest.raises(IdsUnavailable):
        generator.next_id()


def test_a_node_whose_ids_ran_ahead_of_the_clock_is_given_to_nobody_before_the_clock_has_passed_them(
    take: Callable[[], LeaseKeeper],
) -> None:
    only_nodes(0)
    keeper = take()
    in_an_hour = clock.now_ms() + 3_600_000
    keeper.generator = Generator(0, in_an_hour, in_an_hour + 1_000, clock=clock.now_ms)
    keeper.next_id()
    keeper.stop(release=True)
    with pytest.raises(IdsUnavailable):
        take()


# How long a lease is ------------------------------------------------------------------------------


def test_a_lease_is_short_at_first_and_reaches_further_the_longer_it_lasts(
    take: Callable[[], LeaseKeeper],
) -> None:
    keeper = take()
    node_id = range_of(keeper).node_id
    assert range_of(keeper).until_ms <= clock.now_ms() + node_lease.FIRST_LEASE_MS
    eventually(lambda: range_of(keeper).until_ms > clock.now_ms() + 2 * node_lease.FIRST_LEASE_MS)
    assert range_of(keeper).node_id == node_id
    assert SnowflakeNode.objects.get(node_id=node_id).leased_until_ms == range_of(keeper).until_ms


def test_a_process_that_crashes_again_and_again_uses_up_no_nodes(
    take: Callable[[], LeaseKeeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_lease, "FIRST_LEASE_MS", 100)
    monkeypatch.setattr(node_lease, "RETRY_SECONDS", 0.1)
    only_nodes(0, 0)
    for _ in range(10):
        crashing = LeaseKeeper()
        eventually(lambda keeper=crashing: can_mint(keeper.next_id))  # type: ignore[misc]
        crashing.stop(release=False)


def test_a_used_up_range_is_renewed_by_the_next_id(take: Callable[[], LeaseKeeper]) -> None:
    keeper = take()
    first = keeper.next_id()
    use_up(keeper)
    assert keeper.next_id() > first


def test_a_holder_that_slept_past_its_lease_finds_its_node_given_away_and_takes_another(
    take: Callable[[], LeaseKeeper],
) -> None:
    only_nodes(0)
    sleeper = take()
    use_up(sleeper)
    expired = clock.now_ms() - 1
    SnowflakeNode.objects.update(leased_until_ms=expired, owner=None)
    SnowflakeNode.objects.create(node_id=1, leased_until_ms=expired + 1)

    heir = take()
    assert {range_of(heir).node_id, node_of(sleeper.next_id())} == {0, 1}


def test_a_lease_taken_within_a_transaction_outlasts_its_rollback() -> None:
    with transaction.atomic():
        minted = node_lease.next_id()
        transaction.set_rollback(True)
    assert SnowflakeNode.objects.exclude(owner=None).get().node_id == node_of(minted)


# PostgreSQL away, or hanging ----------------------------------------------------------------------


def test_ids_go_on_without_postgresql_until_the_range_is_used_up(
    take: Callable[[], LeaseKeeper],
) -> None:
    keeper = take()
    with out_of_reach():
        assert keeper.next_id() < keeper.next_id()
        use_up(keeper)
        with pytest.raises(IdsUnavailable, match="PostgreSQL gives no lease to mint ids by"):
            keeper.next_id()
    eventually(lambda: can_mint(keeper.next_id))


def test_a_process_that_starts_without_postgresql_gets_its_lease_when_that_is_back() -> None:
    with out_of_reach():
        node_lease.keep()
        assert not can_mint(node_lease.next_id)
        assert not can_mint(node_lease.two_ids_without_waiting)
    eventually(lambda: can_mint(node_lease.two_ids_without_waiting))


def test_who_does_not_wait_mints_from_the_lease_while_postgresql_hangs() -> None:
    first = node_lease.next_id()
    with hanging():
        node_lease.keep().renew_soon()
        eventually(lambda: execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
        assert node_lease.two_ids_without_waiting()[0] > first


def test_nobody_waits_long_for_a_postgresql_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_lease, "WAIT_SECONDS", 0.2)
    with hanging():
        refused = [can_mint(node_lease.two_ids_without_waiting)]
        threads = [
            threading.Thread(target=lambda: refused.append(can_mint(node_lease.next_id)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert refused == [False] * 9
        assert execute("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)]
    eventually(lambda: can_mint(node_lease.two_ids_without_waiting))


def test_the_keeper_holds_no_connection_between_its_turns() -> None:
    node_lease.next_id()
    connection.ensure_connection()
    pool = connection.pool  # type: ignore[attr-defined]
    # All but the one of this test.
    eventually(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"] - 1)
