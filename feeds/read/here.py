"""What this process has of the cache of each cell: what it knows of the era, and the pages that it
finds there.
"""

from typing import Any, NamedTuple, cast

from eventbus import cells
from eventbus.cells import Cell, OfEach
from feeds.read.era import Trust
from feeds.read.pages import Pages


class Known(NamedTuple):
    """What is known of one cell."""

    trust: Trust
    pages: Pages


def _make(cell: Cell) -> Known:
    trust = Trust(cell=cell)
    return Known(trust, Pages(trust))


_known = OfEach(_make)


def of(cell: Cell) -> Known:
    """Return what this process has of the cache of a cell, always the same."""
    return _known.of(cell)


class _Trust:
    """That of the cell we are on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(of(cells.here()).trust, name)


class _Pages:
    """Those of the cell we are on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(of(cells.here()).pages, name)


trust = cast(Trust, _Trust())
pages = cast(Pages, _Pages())
