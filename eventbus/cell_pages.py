"""The pages of the admin about a cell: `/cells/NAME/admin/…`; without the prefix they are about the
cell that ids come from, which has the accounts.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from django.http import HttpRequest, HttpResponseRedirect
from django.urls import get_script_prefix, reverse

from eventbus import cells
from eventbus.cells import Cell

# In the log of actions, between the number of a row and the cell whose number it is.
OF_CELL = "."
PAGES_OF_A_CELL = re.compile(r"/cells/([a-z][a-z0-9]*)/(?:admin|static)(?:/.*)?")


class Place(NamedTuple):
    """A cell, and where the page that is shown is found about it."""

    cell: Cell
    address: str
    is_here: bool


def prefix_of(cell: Cell) -> str:
    """Return what addresses of pages about this cell begin with."""
    return f"/cells/{cell.name}" if cell.name else ""


def cell_in(path: str) -> Cell | None:
    """Return the cell that an address names; None if it names none."""
    found = PAGES_OF_A_CELL.fullmatch(path)
    return cells.every().get(found[1]) if found else None


def places(request: HttpRequest) -> Iterator[Place]:
    """Yield where the page that is shown is found about each cell; none where there is but one."""
    every = cells.every()
    if len(every) == 1:
        return
    for cell in every.values():
        is_here = cell.name == cells.here().name
        yield Place(cell, prefix_of(cell) + request.path_info, is_here)


def address(cell: Cell, view_name: str) -> str:
    """Return where a page is found about this cell, whichever the page that is shown is about."""
    return prefix_of(cell) + without_prefix(reverse(view_name))


def logged(number: object) -> str:
    """Return what a row of the cell we are on is called in the log of actions, which is one for all
    cells.
    """
    return cells.here().named(str(number))


def from_log(pages: str, object_id: str) -> HttpResponseRedirect | None:
    """Return the way to the page of the row that `logged` has named so, whichever its cell;
    None for the plain number of a row.

    `pages` is what the names of its pages begin with, such as `eventbus_deadletter`.
    """
    number, _, name = object_id.partition(OF_CELL)
    cell = cells.every().get(name) if name else None
    if cell is None or not number.isdecimal():
        return None
    with_number = without_prefix(reverse(f"admin:{pages}_change", args=[number]))
    return HttpResponseRedirect(prefix_of(cell) + with_number)


def without_prefix(address: str) -> str:
    """Return an address that was made on a page about a cell as what is no such page has it."""
    return address.removeprefix(get_script_prefix().rstrip("/"))


def elsewhere(request: HttpRequest, user_id: int) -> HttpResponseRedirect | None:
    """Return the way to the page about the cell that serves the user, unless it is shown already."""
    cell = cells.of(user_id)
    if cell.name == cells.here().name:
        return None
    query = request.META.get("QUERY_STRING", "")
    address = prefix_of(cell) + request.path_info
    return HttpResponseRedirect(f"{address}?{query}" if query else address)
