"""Ids come from one cell: what happens while it is away, and when another takes over; keys of
readers who move.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connections

from eventbus import cellmap, cells
from eventbus.cells import Cell
from eventbus.exceptions import IdempotencyKeyReused, IdsUnavailable
from eventbus.ids import clock, idempotency, node_lease
from eventbus.ids.snowflake import NODES, compose, milliseconds_of
from eventbus.models import ProcessedEvent, SnowflakeNode
from eventbus.watch.health import OK
from feedsite.front.keepers import CellKeepers
from tests.cells.maps import A_SLOTS, B_SLOTS, DATABASES

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)


@contextmanager
def ids_from(name: str, the_map: str) -> Iterator[None]:
    """Have the map say so, as a process hears of it that holds a lease of the other cell."""
    before = cellmap.read(the_map)
    cells.use(cellmap.CellMap(name, before.places), "a")
    yield
    cells.use(before, "a")


def test_ids_come_from_the_cell_that_the_map_names_whichever_one_is_on(
    two_cells: list[Cell],
) -> None:
    a, b = two_cells
    with cells.on(b):
        first = node_lease.next_id()
        assert SnowflakeNode.objects.exclude(owner=None).count() == 1
    assert SnowflakeNode.objects.using(a.alias).exclude(owner=None).count() == 1
    assert not SnowflakeNode.objects.using(b.alias).exists()
    with cells.on(a):
        assert node_lease.next_id() > first


def test_while_the_cell_of_the_ids_is_away_processes_mint_by_their_leases(
    two_cells: list[Cell], the_map: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a worker of another cell starts: it has its own clock."""
    first = node_lease.next_id()
    a, b = two_cells
    with away(a, monkeypatch):
        assert node_lease.next_id() > first
        with cells.on(b):
            assert abs(clock.read() - clock.host_ms()) < 60_000
        node_lease.forget()
        with pytest.raises(IdsUnavailable, match="no lease to mint ids by"):
            node_lease.next_id()
        node_lease.forget()
    assert node_lease.next_id() > first


def test_a_process_that_has_no_ids_says_so_also_after_slots_have_moved(
    two_cells: list[Cell], the_map: str
) -> None:
    """Of the cell that ids come from, and of no other."""
    SnowflakeNode.objects.bulk_create(
        SnowflakeNode(node_id=number, leased_until_ms=clock.host_ms() + 3_600_000)
        for number in range(NODES)
    )
    with pytest.raises(IdsUnavailable):
        node_lease.next_id()
    keepers = [CellKeepers(cell) for cell in two_cells]
    for cell, of_cell in zip(two_cells, keepers, strict=True):
        with cells.on(cell):
            of_cell.postgresql.look()
    moved = the_map.replace(A_SLOTS, "0-499").replace(B_SLOTS, "500-1023")
    cells.use(cellmap.read(moved), "a")
    a, b = (of_cell.servers().postgresql for of_cell in keepers)
    assert a.startswith("gives no ids: All 1024")
    assert b == OK


def test_another_cell_takes_over_when_the_leases_of_the_first_have_run_out(
    two_cells: list[Cell], the_map: str
) -> None:
    """It does not know them, so it gives none before; who has one mints on by it."""
    b = two_cells[1]
    first = node_lease.next_id()
    with cells.on(b):
        ProcessedEvent.objects.create(event_id=first, actor_id=1, type="post.created")
    with ids_from("b", the_map):
        assert node_lease.next_id() > first
        node_lease.forget()
        with pytest.raises(IdsUnavailable, match="All 1024 snowflake nodes are leased"):
            node_lease.next_id()
        with cells.on(b):
            free_at = set(
                SnowflakeNode.objects.using(b.alias).values_list("leased_until_ms", flat=True)
            )
        assert len(free_at) == 1
        assert min(free_at) > clock.now_ms() + node_lease.LEASE_MS
        # Eleven minutes later.
        SnowflakeNode.objects.using(b.alias).update(leased_until_ms=milliseconds_of(first))
        node_lease.forget()
        assert node_lease.next_id() > first


def test_a_cell_whose_clock_is_behind_mints_nothing_below_what_it_has_seen(
    two_cells: list[Cell], the_map: str
) -> None:
    b = two_cells[1]
    ahead = compose(clock.host_ms() + 3_600_000, 1, 0)
    with cells.on(b):
        ProcessedEvent.objects.create(event_id=ahead, actor_id=1, type="post.created")
    with ids_from("b", the_map):
        with pytest.raises(IdsUnavailable, match="All 1024 snowflake nodes are leased"):
            node_lease.next_id()
        oldest = SnowflakeNode.objects.using(b.alias).order_by("leased_until_ms").first()
    assert oldest
    assert oldest.leased_until_ms > milliseconds_of(ahead)


@contextmanager
def away(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have nothing listen where the map says that the cell's PostgreSQL is."""
    closed(cell)
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings[cell.alias], "PORT", "1")
        try:
            yield
        finally:
            closed(cell)


def closed(cell: Cell) -> None:
    connections[cell.alias].close()
    connections[cell.alias].close_pool()  # type: ignore[attr-defined]


def test_a_key_of_another_request_is_not_taken_by_the_cell_that_a_reader_moves_to(
    two_cells: list[Cell], the_map: str
) -> None:
    """Or the request that the key is of would be refused from then on."""
    reader = 4
    assert cells.of(reader).name == "b"
    first = idempotency.reserve(reader, "key", "the first request")
    moving = json.loads(the_map)
    moving["cells"]["a"]["holds"] = "0-1023"
    cells.use(cellmap.read(json.dumps(moving)), "a")
    with pytest.raises(IdempotencyKeyReused):
        idempotency.reserve(reader, "key", "another request")
    assert idempotency.reserve(reader, "key", "the first request") == first
