"""`Idempotency-Key`: a client may repeat a write, and it happens once.

The ids of the write are reserved in PostgreSQL under the user's key before anything is published. A
repeated request finds them and publishes the same event again, whose event id makes it harmless; so
it does not matter where the first request died. PostgreSQL rather than Redis: a Redis that loses a
second of writes would let a post be made twice.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from eventbus import cells
from eventbus.cells import Cell
from eventbus.database.sql import bigints, execute
from eventbus.exceptions import IdempotencyKeyReused
from eventbus.ids import node_lease
from eventbus.models import BEFORE_ERASURE, IdempotencyKey

# That the user was erased is looked up by the statement that writes: see `feeds.erasure`.
_RESERVE = f"""
INSERT INTO idempotency_keys (user_id, key, fingerprint, event_id, object_id)
SELECT new.* FROM (
    VALUES (%(user)s::bigint, %(key)s::text, %(fingerprint)s::text, %(event)s::bigint, %(object)s::bigint)
) AS new (reserving, key, fingerprint, event, object)
WHERE NOT {BEFORE_ERASURE.format(user="reserving", id="event")}
ON CONFLICT DO NOTHING
"""  # noqa: S608 - composed of constants

_TAKE_OVER = f"""
INSERT INTO idempotency_keys (user_id, key, fingerprint, event_id, object_id, created_at)
SELECT kept.* FROM unnest(
    %(users)s::bigint[], %(keys)s::text[], %(fingerprints)s::text[],
    %(events)s::bigint[], %(objects)s::bigint[], %(times)s::timestamptz[]
) AS kept (reserving, key, fingerprint, event, object, created_at)
WHERE NOT {BEFORE_ERASURE.format(user="reserving", id="event")}
ORDER BY 1, 2
ON CONFLICT DO NOTHING
"""  # noqa: S608 - composed of constants


class KeptKey(NamedTuple):
    """A row of `idempotency_keys`."""

    user_id: int
    key: str
    fingerprint: str
    event_id: int
    object_id: int
    created_at: datetime


class Ids(NamedTuple):
    """The ids of a write: of its event, and of the object it makes, if it makes one."""

    event_id: int
    object_id: int


def fresh() -> Ids:
    """Return new ids; the object's is the lower one. Raises `IdsUnavailable`."""
    object_id = node_lease.next_id()
    return Ids(node_lease.next_id(), object_id)


def fresh_without_waiting() -> Ids:
    """Do as `fresh`, or raise `IdsUnavailable` where that would mean to ask PostgreSQL."""
    object_id, event_id = node_lease.two_ids_without_waiting()
    return Ids(event_id, object_id)


def fresh_run(count: int) -> range:
    """Return new ids for as many events. Raises `IdsUnavailable`."""
    return node_lease.next_run(count)


def reserve(user_id: int, key: str, request: str) -> Ids:
    """Return the ids kept under the user's `key`: new ones at first, the same ones for the same
    `request` again.

    Raises `IdempotencyKeyReused` when the key was used for another request, and `IdsUnavailable`.
    """
    return _reserve(user_id, key, request, fresh())


def reserve_run(user_id: int, key: str, request: str, count: int) -> range:
    """Do as `reserve` for a request that is several events, always as many.

    They are consecutive, so a row has room for them: the first is kept as `event_id`.
    """
    run = fresh_run(count)
    first = _reserve(user_id, key, request, Ids(run[0], run[-1])).event_id
    return range(first, first + count)


def _reserve(user_id: int, key: str, request: str, ids: Ids) -> Ids:
    fingerprint = hashlib.sha256(request.encode()).hexdigest()
    holders = cells.holding(user_id)
    if len(holders) > 1:
        # While readers move: whichever of the cells serves the user when the request comes again.
        ids = _kept_in_any(holders, user_id, key, fingerprint) or ids
    for cell in holders:
        # Of two requests at the same time the one decides that comes first in the first cell.
        ids = _keep(cell, user_id, key, fingerprint, ids)
    return ids


def _kept_in_any(holders: Iterable[Cell], user_id: int, key: str, fingerprint: str) -> Ids | None:
    for cell in holders:
        with cells.on(cell):
            kept = IdempotencyKey.objects.filter(user_id=user_id, key=key).first()
        if kept is not None:
            # Before another cell has taken it for this request.
            return _ids_of(kept, fingerprint)
    return None


def _keep(cell: Cell, user_id: int, key: str, fingerprint: str, ids: Ids) -> Ids:
    """Return the ids that the cell has under the key: these, if it had none."""
    with cells.on(cell):
        if _insert(user_id, key, fingerprint, ids):
            return ids
        kept = IdempotencyKey.objects.filter(user_id=user_id, key=key).first()
    if kept is None:
        # Erased since the ids were made: the write is from before that and has no effect.
        return ids
    return _ids_of(kept, fingerprint)


def _ids_of(kept: IdempotencyKey, fingerprint: str) -> Ids:
    if kept.fingerprint != fingerprint:
        raise IdempotencyKeyReused
    return Ids(kept.event_id, kept.object_id)


def take_over(cell: Cell, keys: Sequence[KeptKey]) -> None:
    """Have the cell keep these too, but for what it has under such a key already, and for users who
    were erased since.
    """
    values = {
        "users": bigints(key.user_id for key in keys),
        "keys": [key.key for key in keys],
        "fingerprints": [key.fingerprint for key in keys],
        "events": bigints(key.event_id for key in keys),
        "objects": bigints(key.object_id for key in keys),
        "times": [key.created_at for key in keys],  # none is kept for longer by that
    }
    with cells.on(cell):
        execute(_TAKE_OVER, values)


def _insert(user_id: int, key: str, fingerprint: str, ids: Ids) -> bool:
    values = {
        "user": user_id,
        "key": key,
        "fingerprint": fingerprint,
        "event": ids.event_id,
        "object": ids.object_id,
    }
    return bool(execute(_RESERVE, values))
