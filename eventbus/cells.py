"""Cells: whose feeds are in which PostgreSQL.

A cell is a PostgreSQL, a Redis and workers for the readers of some *slots*. Each cell has every
post, and consumes the whole log in consumer groups of its own; no transaction spans two of them.
Without `FEED_CELLS` there is one cell, which has no name, and everybody is its reader.

The one place that says which cell code is about is `on`: connections to PostgreSQL and Redis
(`eventbus.database.current`), the ORM (`Router`) and the names of consumer groups follow it. A thread
starts on the cell of its process (`own`), whatever the thread that started it was on.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from eventbus import cellmap
from eventbus.cellmap import ONE_CELL, SLOTS, CellMap, Slots

# A Lehmer generator's step (S. Park and K. Miller, "Random number generators: good ones are hard to
# find", 1988, with the multiplier that they came to prefer): users who signed up one after the other
# are spread over all slots. Never to be changed: it says where feeds are.
MODULUS = 2**31 - 1
MULTIPLIER = 48_271
# The same in SQL, of a bigint from 0 on: nothing in it comes near 2^63.
SLOT_SQL = f"mod(mod(mod({{user}}::bigint, {MODULUS}) * {MULTIPLIER}, {MODULUS}), {SLOTS})"

T = TypeVar("T")

log = structlog.get_logger(__name__)

DEFAULT = "default"
NO_CELL = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell, as this process knows it."""

    name: str  # empty for the only one
    alias: str  # of its PostgreSQL and its Redis in Django's settings
    slots: Slots  # those it serves
    holds: Slots  # those whose feeds it keeps up to date, by the map: see `eventbus.identity.held`

    def serves(self, user_id: int) -> bool:
        """Tell whether the user is a reader of this cell."""
        return slot_of(user_id) in self.slots

    def holds_user(self, user_id: int) -> bool:
        """Tell whether this cell keeps the user's feed and follows up to date; others' feeds rest
        in it.
        """
        return slot_of(user_id) in self.holds

    def strangers(self, user_ids: Iterable[int]) -> list[int]:
        """Return those of the users whom this cell does not hold."""
        return outside(self.holds, user_ids)

    def __str__(self) -> str:
        return f"serves {cellmap.written(self.slots)}, holds {cellmap.written(self.holds)}"

    def named(self, what: str) -> str:
        """Return the name that `what` has in this cell, such as a consumer group: `fanout.a`."""
        return named(what, self.name)


def named(what: str, name: str) -> str:
    """Return the name that `what` has in the cell of that name, as `Cell.named` does."""
    return f"{what}.{name}" if name else what


def alias_of(name: str, own_name: str) -> str:
    """Return what Django's settings call a cell, in a process of the cell `own_name`."""
    return DEFAULT if name == own_name else f"cell_{name}"


class _InUse:
    """The map that this process goes by."""

    def __init__(self, cell_map: CellMap, own_name: str) -> None:
        self.source = cell_map
        self.cells = {
            name: Cell(name, alias_of(name, own_name), place.slots, place.holds)
            for name, place in cell_map.places.items()
        }
        self.own = self.cells[own_name]
        self.ids = self.cells[cell_map.ids]
        self.by_alias = {cell.alias: cell for cell in self.cells.values()}
        serving = {slot: cell for cell in self.cells.values() for slot in cell.slots}
        self.by_slot = [serving[slot] for slot in range(SLOTS)]


_in_use = _InUse(ONE_CELL, NO_CELL)
_seen: tuple[int, ...] | None = None  # the file's stamp when it was last read
_refreshing = threading.Lock()
_alias: ContextVar[str] = ContextVar("cell_alias", default=DEFAULT)


def slot_of(user_id: int) -> int:
    """Return the slot of a user, as `SLOT_SQL` does."""
    return user_id % MODULUS * MULTIPLIER % MODULUS % SLOTS


def outside(slots: Slots, user_ids: Iterable[int]) -> list[int]:
    """Return those of the users who are in none of the slots."""
    if len(slots) == SLOTS:
        return []
    return [user_id for user_id in user_ids if slot_of(user_id) not in slots]


def of(user_id: int) -> Cell:
    """Return the cell that serves the user."""
    return _in_use.by_slot[slot_of(user_id)]


def holding(user_id: int) -> list[Cell]:
    """Return the cells that keep the user's feed up to date, in the order of the map: one, or more
    while readers move.
    """
    slot = slot_of(user_id)
    return [cell for cell in _in_use.cells.values() if slot in cell.holds]


def every() -> Mapping[str, Cell]:
    """Return all cells by name, in the order of the map."""
    return MappingProxyType(_in_use.cells)


def own() -> Cell:
    """Return the cell of this process; of one that belongs to none, the one that ids come from."""
    return _in_use.own


def of_ids() -> Cell:
    """Return the cell by whose PostgreSQL and clock ids are minted."""
    return _in_use.ids


def here() -> Cell:
    """Return the cell that what is done now is about: that of `on`, or `own`."""
    return _in_use.by_alias[_alias.get()]


def at(alias: str) -> Cell:
    """Return the cell whose servers have that alias in Django's settings; `own` for an alias of
    Django's.
    """
    return _in_use.by_alias.get(alias, _in_use.own)


def alias() -> str:
    """Return the alias of `here` in Django's settings."""
    return _alias.get()


@contextmanager
def on(cell: Cell) -> Iterator[None]:
    """Have all that is asked of PostgreSQL and Redis in here be asked of this cell's."""
    token = _alias.set(cell.alias)
    try:
        yield
    finally:
        _alias.reset(token)


def owner_of(name: str) -> Cell:
    """Return the cell that `Cell.named` has made the name for; for any other the first by name,
    which does not change while slots and ids move.
    """
    found = _in_use.cells.get(name.rpartition(".")[2])
    return found or _in_use.cells[min(_in_use.cells)]


def holds_sql(user: str) -> str:
    """Return the condition that `here` holds the user by the map; the user is a column in SQL."""
    return among_sql(user, here().holds)


def serves_sql(user: str) -> str:
    """Return the condition that `here` serves the user, who is a column in SQL."""
    return among_sql(user, here().slots)


def among_sql(user: str, slots: Slots) -> str:
    """Return the condition that the user, who is a column in SQL, is in one of the slots."""
    if len(slots) == SLOTS:
        return "true"
    return f"('{_multirange(slots)}'::int8multirange @> {SLOT_SQL.format(user=user)})"


def _multirange(slots: Slots) -> str:
    ranges = [part.partition("-") for part in cellmap.written(slots).split(",") if part]
    return "{" + ",".join(f"[{first},{last or first}]" for first, _, last in ranges) + "}"


def use(cell_map: CellMap, own_name: str) -> None:
    """Go by this map from now on."""
    global _in_use
    _in_use = _InUse(cell_map, own_name)


def use_settings() -> None:
    """Go by the map that this process was started with."""
    use(settings.FEED_CELLS, settings.FEED_CELL)


def refresh() -> None:
    """Go by what the map's file says now, if it says another thing; may be called often.

    A wrong map, or one of other cells than this process has connections to, is told in the log once,
    and the map before goes on.
    """
    file: Path | None = settings.FEED_CELLS_FILE
    # Of several threads one does it, and none waits for a file system that stands still.
    if file is None or not _refreshing.acquire(blocking=False):
        return
    try:
        _read_again(file)
    finally:
        _refreshing.release()


def _read_again(file: Path) -> None:
    global _seen
    stamp = _stamp(file)
    if stamp == _seen:
        return
    _seen = stamp
    try:
        found = cellmap.read(str(file))
        _require_same_servers(found, _in_use.source)
    except ImproperlyConfigured as error:
        log.error("cell_map_refused", error=str(error))
        return
    if found != _in_use.source:
        use(found, _in_use.own.name)
        log.info("cell_map_changed", cells={cell.name: str(cell) for cell in every().values()})


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _require_same_servers(found: CellMap, known: CellMap) -> None:
    for name in found.places.keys() | known.places.keys():
        one, other = found.places.get(name), known.places.get(name)
        if not one or not other or (one.database, one.redis) != (other.database, other.redis):
            cellmap.refuse(f"Cell {name} is new, gone or elsewhere: that needs a restart")


class OfEach(Generic[T]):
    """Something that a process has once for each cell, made when it is first asked for."""

    def __init__(self, make: Callable[[Cell], T]) -> None:
        self._make = make
        self._made: dict[str, T] = {}

    def of(self, cell: Cell) -> T:
        """Return what there is of a cell, always the same."""
        found = self._made.get(cell.name)
        if found is None:
            # Of two threads that come first, the one that is later takes what the other has made.
            found = self._made.setdefault(cell.name, self._make(cell))
        return found


class Router:
    """Has Django's ORM ask the cell that `on` says; for accounts of the admin, always the own one."""

    LABELS = frozenset({"eventbus", "posts", "feeds"})

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """Return the alias to ask; None leaves it to Django."""
        if model._meta.db_table == "snowflake_nodes":
            return of_ids().alias
        if model._meta.app_label not in self.LABELS:
            return None
        instance = hints.get("instance")
        return (instance._state.db if instance is not None else None) or alias()

    db_for_write = db_for_read
