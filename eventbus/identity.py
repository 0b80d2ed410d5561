"""Which cell a database is: it knows its own name, so that a wrong address behind a name is noticed.

It knows whose feeds it keeps up to date too, and its word counts, not that of the map: of two
workers that have read the map at different times, one would leave out what the other applies.
"""

import time
from collections.abc import Iterable
from functools import lru_cache

from django.conf import settings

from eventbus import cellmap, cells, kafka
from eventbus.cellmap import Slots, refuse, written
from eventbus.cells import Cell
from eventbus.database.current import atomic, connection
from eventbus.database.sql import execute, fetch
from eventbus.models import CellIdentity

MAP_PATIENCE_SECONDS, LOOK_SECONDS = 2.0, 0.1

_KEPT = "SELECT name, holds FROM cell_identity"
_DROP_OFFSETS = 'DELETE FROM consumer_offsets WHERE "group" = %s'
_TAKE_OFFSETS = """
INSERT INTO consumer_offsets ("group", topic, partition, next_offset, topic_id)
SELECT %s, topic, partition, next_offset, topic_id FROM consumer_offsets WHERE "group" = %s
"""


def require() -> None:
    """Raise `ImproperlyConfigured` unless the database we are on is that of the cell we are on.

    While what a cell holds is changed (`manage.py cells tidy`), it takes a moment until the map's
    file, the database and this process say the same. Raises `DatabaseError`.
    """
    deadline = time.monotonic() + MAP_PATIENCE_SECONDS
    while sentence := problem(cells.here()):
        can_change = settings.FEED_CELLS_FILE is not None and not mistaken(cells.here())
        if not can_change or time.monotonic() > deadline:
            refuse(sentence)
        time.sleep(LOOK_SECONDS)
        cells.refresh()


def require_all(every: Iterable[Cell]) -> None:
    """Raise `ImproperlyConfigured` unless the database of each of the cells is what the map says.
    Raises `DatabaseError`.
    """
    for cell in every:
        if sentence := problem(cell):
            refuse(sentence)


def problem(cell: Cell) -> str:
    """Return why the database of a cell cannot be what the map says; empty when it is that. It may
    hold more than the map says. Raises `DatabaseError`.
    """
    with cells.on(cell):
        kept = CellIdentity.objects.first()
    sentence = _mistaken(cell, kept)
    if sentence or kept is None:
        return sentence
    if cell.holds <= _slots_in(cell.name, kept.holds):
        return ""
    return f"Cell {cell.name} holds {written(cell.holds)} here, and {kept.holds or 'none'} by its database"


def held() -> Slots:
    """Return the slots whose feeds the cell we are on keeps up to date, as its database says now.

    In a transaction that has joined the workers (`eventbus.database.locks`) it is so to its end for
    whoever has changed it and then waited for them. Nothing is asked where there is one cell.
    Raises `DatabaseError`, and `ImproperlyConfigured` for the database of another cell.
    """
    cell = cells.here()
    if not cell.name:
        return cell.holds
    kept = [CellIdentity(name=name, holds=holds) for name, holds in fetch(_KEPT)]
    if sentence := _mistaken(cell, kept[0] if kept else None):
        refuse(sentence)
    return _slots_in(cell.name, kept[0].holds)


def holds_sql(user: str) -> str:
    """Return the condition that the cell we are on holds the user, who is a column in SQL; see
    `held`.
    """
    return cells.among_sql(user, held())


@lru_cache(maxsize=16)
def _slots_in(name: str, text: str) -> Slots:
    return cellmap.slots_of(name, text)


def mistaken(cell: Cell) -> str:
    """Return why the database of a cell is not its own, whatever it holds; empty when it is. Raises
    `DatabaseError`.
    """
    with cells.on(cell):
        return _mistaken(cell, CellIdentity.objects.first())


def _mistaken(cell: Cell, kept: CellIdentity | None) -> str:
    if kept is None:
        return (
            f"The database of cell {cell.name} is of none yet: run `migrate`" if cell.name else ""
        )
    if not cell.name:
        return f"It is not set, but the database is that of cell {kept.name}"
    if kept.name != cell.name:
        return f"The database of cell {cell.name} is that of cell {kept.name}"
    return ""


def require_claimable() -> None:
    """Raise `ImproperlyConfigured` for the database of another cell, before anything is changed in
    it.
    """
    if CellIdentity._meta.db_table not in connection.introspection.table_names():
        return
    if CellIdentity.objects.exists():
        require()


def claim() -> None:
    """Make the database that of our cell, if it is of none and cells have names."""
    cell = cells.here()
    if not cell.name:
        return
    defaults = {"name": cell.name, "holds": written(cell.holds)}
    with atomic():
        _, is_new = CellIdentity.objects.get_or_create(id=1, defaults=defaults)
        if is_new:
            go_on_from(cells.NO_CELL)


def go_on_from(former: str) -> None:
    """Have the groups of our cell go on from where those of the cell that this database was of have
    come; in a transaction.

    The rows of the former stay: by them dead letters of before are told from those after
    (`eventbus.deadletters.store`).
    """
    for base in (kafka.FANOUT_GROUP, kafka.DLQ_GROUP):
        group = cells.here().named(base)
        execute(_DROP_OFFSETS, [group])
        execute(_TAKE_OFFSETS, [group, cells.named(base, former)])
