"""Leases of snowflake nodes: whatever processes and clocks do, two holders never mint the same id."""

from collections.abc import Callable, Iterator
from itertools import chain

import pytest
from django.db import connection

from eventbus import node_lease
from eventbus.exceptions import IdsUnavailable
from eventbus.models import SnowflakeNode
from eventbus.node_lease import NodeLease
from eventbus.snowflake import NODES, Generator, milliseconds_of, wall_clock_ms
from tests.eventbus.conftest import StartScript, output_of
from tests.eventbus.events import eventually

pytestmark = pytest.mark.django_db(transaction=True, available_apps=["eventbus"])

# Prints a line for each of its processes and turns: the process, then the ids it minted.
MINT_IN_A_FAMILY = """
import multiprocessing, os
import django
django.setup()
from django.db import connection
from eventbus import node_lease

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


@pytest.fixture
def take() -> Iterator[Callable[[], NodeLease]]:
    taken: list[NodeLease] = []

    def take_lease() -> NodeLease:
        taken.append(NodeLease())
        return taken[-1]

    yield take_lease
    for lease in taken:
        lease.release()


def only_nodes(*free_since: int) -> None:
    """Have nodes 0, 1, … alone, free since these times."""
    SnowflakeNode.objects.bulk_create(SnowflakeNode(node_id=n, leased_until_ms=ms) for n, ms in enumerate(free_since))


def node_of(snowflake_id: int) -> int:
    return snowflake_id >> 12 & 0x3FF


def test_the_first_lease_ever_finds_all_nodes_free(take: Callable[[], NodeLease]) -> None:
    take()
    assert SnowflakeNode.objects.count() == NODES
    assert SnowflakeNode.objects.filter(owner=None).count() == NODES - 1


def test_two_leases_never_share_a_node(take: Callable[[], NodeLease]) -> None:
    leases = [take() for _ in range(10)]
    assert len({lease.generator.node_id for lease in leases}) == 10


def test_a_process_and_its_forked_children_never_mint_the_same_id(start_script: StartScript) -> None:
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


def test_when_all_nodes_are_leased_there_is_none_to_have(take: Callable[[], NodeLease]) -> None:
    only_nodes(0)
    take()
    with pytest.raises(IdsUnavailable, match="All 1024 snowflake nodes are leased"):
        NodeLease()


def test_a_released_node_goes_on_after_its_last_id(take: Callable[[], NodeLease]) -> None:
    only_nodes(0)
    lease = take()
    last = max(lease.next_id() for _ in range(1_000))
    lease.release()
    eventually(lambda: milliseconds_of(last) < wall_clock_ms())
    successor = take().next_id()
    assert node_of(successor) == node_of(last)
    assert successor > last


def test_a_node_whose_ids_ran_ahead_of_the_clock_is_given_to_nobody_before_the_clock_has_passed_them(
    take: Callable[[], NodeLease],
) -> None:
    only_nodes(0)
    lease = take()
    hour = 3_600_000
    lease.generator = Generator(0, wall_clock_ms(), wall_clock_ms() + 2 * hour, clock=lambda: wall_clock_ms() + hour)
    lease.next_id()
    lease.release()
    with pytest.raises(IdsUnavailable):
        take()


def test_a_renewed_lease_keeps_its_node(take: Callable[[], NodeLease]) -> None:
    lease = take()
    node_id, until_ms = lease.generator.node_id, lease.generator.until_ms
    eventually(lambda: wall_clock_ms() > until_ms - node_lease.LEASE_MS)
    lease.renew()
    assert lease.generator.node_id == node_id
    assert lease.generator.until_ms > until_ms
    assert SnowflakeNode.objects.get(node_id=node_id).leased_until_ms == lease.generator.until_ms


def test_a_used_up_range_is_renewed_by_the_next_id(take: Callable[[], NodeLease]) -> None:
    lease = take()
    first = lease.next_id()
    lease.generator.until_ms = lease.generator.last_ms - 1
    assert lease.next_id() > first


def test_a_holder_that_slept_past_its_lease_finds_its_node_given_away_and_takes_another(
    take: Callable[[], NodeLease],
) -> None:
    only_nodes(0)
    sleeper = take()
    expired = sleeper.generator.until_ms = wall_clock_ms() - 1
    SnowflakeNode.objects.update(leased_until_ms=expired)
    SnowflakeNode.objects.create(node_id=1, leased_until_ms=expired + 1)

    heir = take()
    assert heir.generator.node_id == 0
    assert node_of(sleeper.next_id()) == 1


def test_ids_go_on_without_postgresql_until_the_range_is_used_up(take: Callable[[], NodeLease]) -> None:
    lease = take()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE snowflake_nodes RENAME TO out_of_reach")
        try:
            assert lease.next_id() < lease.next_id()
            lease.generator.until_ms = lease.generator.last_ms - 1
            with pytest.raises(IdsUnavailable):
                lease.next_id()
        finally:
            cursor.execute("ALTER TABLE out_of_reach RENAME TO snowflake_nodes")
    assert lease.next_id()
