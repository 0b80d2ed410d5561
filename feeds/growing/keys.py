"""Idempotency keys of readers who move: whoever repeats a request finds what it had reserved.

Since a process knows of both cells it reserves keys in both (`eventbus.ids.idempotency`), so what has
to be given are those of before.
"""

from collections.abc import Iterator
from typing import Any

from eventbus import cells
from eventbus.cellmap import Slots
from eventbus.cells import Cell
from eventbus.database.plans import by_index
from eventbus.database.sql import bigints, execute, fetch
from eventbus.ids import idempotency
from eventbus.ids.idempotency import KeptKey

KEYS_A_PART = 500

_KEYS = """
SELECT user_id, key, fingerprint, event_id, object_id, created_at FROM idempotency_keys
WHERE (user_id, key) > (%s, %s) ORDER BY user_id, key LIMIT %s
"""
# Each is looked up by its key, whatever statistics say of the table.
_DELETE = """
DELETE FROM idempotency_keys USING (
    SELECT unnest((SELECT %s::bigint[])) AS reader, unnest((SELECT %s::text[])) AS name
) AS gone
WHERE user_id = reader AND key = name
"""


def give(source: Cell, target: Cell, slots: Slots) -> None:
    """Have the target keep what the source has of the users of these slots; may be repeated."""
    for kept in _parts(source):
        moving = [key for key in kept if cells.slot_of(key.user_id) in slots]
        if moving:
            idempotency.take_over(target, moving)


def delete(cell: Cell) -> int:
    """Delete those of users whom the cell does not hold; return how many."""
    deleted = 0
    for kept in _parts(cell):
        gone = [key for key in kept if not cell.holds_user(key.user_id)]
        columns: list[Any] = [bigints(key.user_id for key in gone), [key.key for key in gone]]
        with cells.on(cell):
            deleted += execute(_DELETE, columns)
    return deleted


def _parts(cell: Cell) -> Iterator[list[KeptKey]]:
    after: tuple[int, str] = (1, "")  # 0 is nobody: imports keep theirs in the cell of the ids
    while True:
        with cells.on(cell), by_index():
            kept = [KeptKey(*row) for row in fetch(_KEYS, [*after, KEYS_A_PART])]
        if not kept:
            return
        after = kept[-1].user_id, kept[-1].key
        yield kept
