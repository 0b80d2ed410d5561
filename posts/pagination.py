"""Keyset pages with the shape of Django REST framework's lists and an opaque cursor.

The cursor is a position between two rows: an id and the side of it to read. Ids never change and
are unique, so no row is skipped or shown twice, whatever is written while someone pages.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from rest_framework.exceptions import ParseError
from rest_framework.request import Request

from eventbus.ids.snowflake import MAX_ID

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

Row = TypeVar("Row")


class Position(NamedTuple):
    """Where a page starts: at `id` towards older rows, or above `id` towards newer ones."""

    id: int
    newer: bool

    def encode(self) -> str:
        return (
            base64.urlsafe_b64encode(f"{'n' if self.newer else 'o'}{self.id}".encode())
            .decode()
            .rstrip("=")
        )


START = Position(MAX_ID, newer=False)


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in the order of the list, and the positions of the neighbouring pages."""

    rows: Sequence[Any]
    next: Position | None
    previous: Position | None


def position_of(request: Request) -> Position:
    """Return the position in `?cursor=`, or the start of the list. Raises `ParseError`."""
    cursor = request.query_params.get("cursor")
    return START if cursor is None else _decode(cursor)


def limit_of(request: Request) -> int:
    """Return `?limit=`, 1 … 100, or 20. Raises `ParseError`."""
    text = request.query_params.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    if text.isascii() and text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    raise ParseError(f"limit must be a whole number of 1 to {MAX_LIMIT}.", code="invalid_limit")


def paginate(
    read: Callable[[Position, int], Sequence[Row]],
    id_of: Callable[[Row], int],
    position: Position,
    limit: int,
    any_beyond: Callable[[Position], bool] | None = None,
) -> Page:
    """Return the page at `position` from `read(position, limit)`, which lists rows nearest to the
    position first.

    `any_beyond` tells whether there is any row beyond a position, for lists that know it cheaper
    than by reading one.
    """
    any_beyond = any_beyond or (lambda place: bool(read(place, 1)))
    rows = read(position, limit + 1)
    more = len(rows) > limit
    rows = rows[:limit]
    if position.newer:
        rows = rows[::-1]
        # What was at the position may be gone by now; reading on from just below finds all that is
        # left.
        older = Position(id_of(rows[-1]) - 1 if rows else position.id, newer=False)
        return Page(
            rows,
            next=older if any_beyond(older) else None,
            previous=Position(id_of(rows[0]), newer=True) if more else None,
        )
    newer = Position(id_of(rows[0]) if rows else position.id, newer=True)
    return Page(
        rows,
        next=Position(id_of(rows[-1]) - 1, newer=False) if more else None,
        previous=newer if position != START and any_beyond(newer) else None,
    )


def nothing(_position: Position, _limit: int) -> list[Any]:
    """Read no row, for `paginate`: the list of a user of whom the reader is to see nothing."""
    return []


def link(request: Request, position: Position | None) -> str | None:
    """Return the absolute URL of the page at `position`, keeping the request's `limit`."""
    if position is None:
        return None
    address = f"{request.scheme}://{request.get_host()}{request.path}"
    return link_at(address, position.encode(), request.query_params.get("limit"))


def link_at(address: str, cursor: str, limit: str | None) -> str:
    """Return the URL of the page at `cursor` of the list at `address`, with the `limit` that was
    asked for.
    """
    query = f"cursor={cursor}&limit={limit}" if limit else f"cursor={cursor}"
    return f"{address}?{query}"


def _decode(cursor: str) -> Position:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        side, number = text[0], int(text[1:])
    except (binascii.Error, ValueError, IndexError) as error:
        raise _bad_cursor() from error
    if side not in "no" or not 0 <= number <= MAX_ID:
        raise _bad_cursor()
    return Position(number, newer=side == "n")


def _bad_cursor() -> ParseError:
    return ParseError("cursor is not one this API gave out.", code="invalid_cursor")
