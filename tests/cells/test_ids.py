"""Ids come from one cell: what happens while it is away, and when another takes over; keys of
readers who move.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from django.db import connections
from pytest_django import Settings

from eventbus import cellmap, cells
from eventbus.cells import Cell
from eventbus.exceptions import IdempotencyKeyReused, IdsUnavailable
from eventbus.ids import clock, idempotency, node_lease
from eventbus.ids.id_ranges import IdRange
from eventbus.ids.snowflake import NODES, compose, milliseconds_of
from eventbus.models import ProcessedEvent, SnowflakeNode
from eventbus.watch.health import OK
from feedsite.front.keepers import CellKeepers
from tests.cells.maps import A_SLOTS, B_SLOTS, DATABASES
from tests.eventbus.events import eventually

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


def leases_end(cell: Cell, ms: int) -> None:
    """Have the last lease that the cell has given be one until then."""
    nodes = SnowflakeNode.objects.using(cell.alias)
    nodes.all().delete()
    nodes.bulk_create(SnowflakeNode(node_id=n, leased_until_ms=ms - n) for n in range(NODES))


def free_at(cell: Cell) -> int:
    """Return when the first node of the cell may be leased."""
    first = SnowflakeNode.objects.using(cell.alias).order_by("leased_until_ms").first()
    assert first
    return first.leased_until_ms


def assert_gives_none() -> None:
    """A cell that does not answer is waited for."""
    node_lease.forget()
    eventually(lambda: "All 1024 snowflake nodes are leased" in node_lease.keep().trouble())
    with pytest.raises(IdsUnavailable):
        node_lease.next_id()
    node_lease.forget()


def assert_gives_some() -> None:
    node_lease.forget()
    eventually(lambda: not node_lease.keep().trouble())
    node_lease.forget()


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
    """It gives none before; who has one mints on by it. That it has seen no event yet says
    nothing.
    """
    a, b = two_cells
    first = node_lease.next_id()
    last_ms = clock.now_ms() + 300_000
    SnowflakeNode.objects.filter(owner=None).update(leased_until_ms=last_ms)
    with ids_from("b", the_map):
        assert node_lease.next_id() > first
        assert_gives_none()
        assert free_at(b) == last_ms + node_lease.TAKEOVER_MARGIN_MS
        # So much later.
        leases_end(a, milliseconds_of(first))
        leases_end(b, clock.now_ms() - 1)
        node_lease.forget()
        assert node_lease.next_id() > first


def test_leases_of_a_cell_that_is_away_are_taken_to_be_the_longest_there_are(
    two_cells: list[Cell], the_map: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two_cells
    with ids_from("b", the_map), away(a, monkeypatch):
        assert_gives_none()
        assert free_at(b) > clock.now_ms() + node_lease.LEASE_MS
        leases_end(b, clock.now_ms() - 1)  # when that is over
        assert_gives_some()


def test_a_cell_that_ids_come_back_to_outlasts_the_leases_given_meanwhile(
    two_cells: list[Cell], the_map: str
) -> None:
    """It was away, so it has processed nothing that was minted by them."""
    a, b = two_cells
    leases_end(a, clock.host_ms() - 3_600_000)
    b_until = clock.host_ms() + 400_000
    leases_end(b, b_until)
    assert_gives_none()
    assert free_at(a) == b_until + node_lease.TAKEOVER_MARGIN_MS


def test_an_import_takes_no_ids_while_there_are_leases_of_the_cell_before(
    two_cells: list[Cell], the_map: str
) -> None:
    """Nor by nodes that the cell has leased when ids came from it long ago."""
    b = two_cells[1]
    node_lease.next_id()
    leases_end(b, clock.now_ms() - 3_600_000)
    with ids_from("b", the_map), pytest.raises(IdsUnavailable):
        IdRange.lease(10)
    node_lease.forget()


def test_processes_start_anew_while_another_cell_is_away(
    two_cells: list[Cell], the_map: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two_cells
    leases_end(a, clock.host_ms() - 3_600_000)
    with away(b, monkeypatch):
        assert_gives_some()


def test_a_process_notices_that_ids_come_from_elsewhere_before_it_renews(
    two_cells: list[Cell], the_map: str, tmp_path: Path, settings: Settings
) -> None:
    """One that nothing else tells of the map, such as a command that runs for long."""
    a, b = two_cells
    file = tmp_path / "cells.json"
    file.write_text(the_map)
    settings.FEED_CELLS_FILE = file
    node_lease.next_id()
    moved = json.loads(the_map) | {"ids": "b"}
    file.write_text(json.dumps(moved, indent=2))
    node_lease.keep().renew_soon()
    kept = SnowflakeNode.objects.using(b.alias).filter(leased_until_ms__gt=0)
    eventually(kept.exists)
    last_of_a = SnowflakeNode.objects.using(a.alias).exclude(owner=None).get()
    assert free_at(b) == last_of_a.leased_until_ms + node_lease.TAKEOVER_MARGIN_MS
    node_lease.forget()


def test_a_process_that_knows_of_no_cells_mints_nothing_on_the_database_of_one(
    two_cells: list[Cell],
) -> None:
    node_lease.forget()
    cells.use(cellmap.ONE_CELL, cells.NO_CELL)
    with pytest.raises(IdsUnavailable, match="is not set, but the database is that of cell a"):
        node_lease.next_id()
    node_lease.forget()


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


def test_a_cell_that_others_were_merged_into_outlasts_their_leases_though_it_is_alone(
    two_cells: list[Cell], the_map: str
) -> None:
    newest = node_lease.next_id()
    node_lease.forget()
    SnowflakeNode.objects.all().delete()  # as in a database that is made from the log
    ProcessedEvent.objects.create(event_id=newest, actor_id=1, type="post.created")
    everybody = frozenset(range(cellmap.SLOTS))
    place = replace(cellmap.read(the_map).places["a"], slots=everybody, holds=everybody)
    cells.use(cellmap.CellMap("a", {"a": place}), "a")
    with pytest.raises(IdsUnavailable, match="All 1024 snowflake nodes are leased"):
        node_lease.next_id()


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
