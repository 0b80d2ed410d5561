"""Which cell a database is: it knows its own name, so that a wrong address behind a name is noticed.

It knows whose feeds it keeps up to date too: of two workers with different maps, one would leave out
what the other applies.
"""

from eventbus import cells
from eventbus.cellmap import refuse, written
from eventbus.cells import Cell
from eventbus.database.current import connection
from eventbus.models import CellIdentity


def require() -> None:
    """Raise `ImproperlyConfigured` unless the database we are on is that of the cell we are on.

    Raises `DatabaseError`.
    """
    if sentence := problem(cells.here()):
        refuse(sentence)


def problem(cell: Cell) -> str:
    """Return why the database of a cell cannot be its own; empty when it is. Raises `DatabaseError`."""
    with cells.on(cell):
        kept = CellIdentity.objects.first()
    sentence = _mistaken(cell, kept)
    if sentence or kept is None:
        return sentence
    holds = written(cell.holds)
    if kept.holds != holds:
        return f"Cell {cell.name} holds {holds or 'no slots'} here, and {kept.holds or 'none'} by its database"
    return ""


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
    if cell.name:
        CellIdentity.objects.get_or_create(
            id=1, defaults={"name": cell.name, "holds": written(cell.holds)}
        )
