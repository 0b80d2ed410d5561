"""Noticing that the map of cells was changed, while the process goes on.

What may change is who is served and held where, and from which cell ids come: the servers of a cell
are those that the process was started with.
"""

from pathlib import Path
from typing import Self

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from eventbus import cellmap, cells
from eventbus.cellmap import CellMap

log = structlog.get_logger(__name__)


class MapFile:
    """The file that `FEED_CELLS` names, of which this process has read what it goes by."""

    def __init__(self, path: Path, known: CellMap, own_name: str) -> None:
        self._path = path
        self._known = known
        self._own_name = own_name
        self._seen: tuple[int, ...] | None = None

    @classmethod
    def of_settings(cls) -> Self | None:
        """Return the file, if the map is in one."""
        path = settings.FEED_CELLS_FILE
        return None if path is None else cls(path, settings.FEED_CELLS, settings.FEED_CELL)

    def look(self) -> None:
        """Go by the map as it is in the file now; one that is wrong changes nothing. Never
        fails.
        """
        seen = self._stamp()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            found = cellmap.read(str(self._path))
            _require_same_servers(self._known, found)
        except ImproperlyConfigured as error:
            log.error("cell_map_refused", error=str(error))
            return
        if found != self._known:
            self._known = found
            cells.use(found, self._own_name)
            log.info("cell_map_changed", ids=found.ids, **_described(found))

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        # A file that was replaced may have the time of the one before.
        return found.st_mtime_ns, found.st_size, found.st_ino


def _require_same_servers(known: CellMap, found: CellMap) -> None:
    def servers(one: CellMap) -> dict[str, tuple[str, str]]:
        return {name: (place.database, place.redis) for name, place in one.places.items()}

    if servers(found) != servers(known):
        cellmap.refuse("Other cells or servers than this process has: it must be started anew")


def _described(found: CellMap) -> dict[str, str]:
    return {
        f"cell_{name}": f"serves {cellmap.written(place.slots)}, holds {cellmap.written(place.holds)}"
        for name, place in found.places.items()
    }
