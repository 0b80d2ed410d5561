"""Dead letters of users who were erased: those that are stored are deleted, and those that come
later are not stored. Their events are processed by that: from before an erasure, they can have no
effect any more.
"""

from typing import Any, NamedTuple

import orjson

from eventbus.database.sql import as_bytes, fetch
from eventbus.ids.snowflake import compose, number_in
from eventbus.models import DeadLetter, ProcessedEvent
from eventbus.record import Record

ERASURE = "user.erased"
BLOCKS = ("user.blocked", "user.unblocked")

# Ids travel as strings in JSON, so one that is named stands in quotes.
_WALK = """
WITH chunk AS MATERIALIZED (
    SELECT id FROM dead_letters WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
)
SELECT count(*), coalesce(max(id), 0) FROM chunk
"""
_NAMING = """
SELECT id, key, value, event_id, event_type FROM dead_letters
WHERE id > %(after)s AND id <= %(last)s AND coalesce(event_id, 0) < %(before)s
  AND (key = %(key)s::bytea OR position(%(quoted)s::bytea IN value) > 0)
ORDER BY id FOR UPDATE
"""
_IS_ERASED = """
SELECT EXISTS (SELECT FROM erasures WHERE user_id = ANY(%s::bigint[]) AND event_id > %s)
"""


class Walked(NamedTuple):
    """How many dead letters were looked at, the last of them, and how many were deleted."""

    rows: int
    last: int
    deleted: int


def erase(user_id: int, *, before: int, after: int, limit: int) -> Walked:
    """Delete those of the `limit` dead letters after `after` that name the user, but for those of
    events from `before` on.

    Within a transaction. Raises `DatabaseError`.
    """
    values: dict[str, Any] = {
        "before": before,
        "after": after,
        "limit": limit,
        "key": str(user_id).encode(),
        "quoted": b'"%d"' % user_id,
    }
    [(count, values["last"])] = fetch(_WALK, values)
    ids = []
    for entry_id, key, value, event_id, event_type in fetch(_NAMING, values):
        if names(user_id, as_bytes(key), as_bytes(value)):
            ids.append(entry_id)
            conclude(as_bytes(value), event_id, event_type)
    # Only the ids: payloads may be megabytes each.
    DeadLetter.objects.filter(id__in=ids).only("id").delete()
    return Walked(count, values["last"], len(ids))


def conclude(value: bytes | None, event_id: int | None, event_type: str) -> None:
    """Note that the event of a dead letter which is not kept is done with, so that nobody waits for
    it.

    Only of the event that its bytes name too: its headers alone prove nothing.
    """
    if event_id is None or event_id != event_in(value):
        return
    # Of nobody: of an erased user nothing is kept.
    ProcessedEvent.objects.bulk_create(
        [ProcessedEvent(event_id=event_id, actor_id=None, type=event_type)], ignore_conflicts=True
    )


def names(user_id: int, key: bytes | None, value: bytes | None) -> bool:
    """Tell whether a record in which the user's id is found is about the user.

    What says it only in a text of somebody else's is not. Of what is no JSON nobody can tell: it is
    taken to be, for it can never be applied.
    """
    found = named_in(key, value)
    return found is None or user_id in found


def named_in(key: bytes | None, value: bytes | None) -> set[int] | None:
    """Return the ids that a record names: its key, its actor, and what its payload has under a name
    that ends with `_id`; None if its value is no JSON object.

    An erasure names who is erased, not who asked for it: it has to happen although that one is
    erased too. A block names who blocks: it holds although the other is erased.
    """
    fields = _fields(value)
    if fields is None:
        return None
    key_text = (key or b"").decode("ascii", "replace")
    if fields.get("type") == ERASURE:
        return _ids([key_text])
    if fields.get("type") in BLOCKS:
        return _ids([fields.get("actor_id")])
    payload = fields.get("payload")
    members = payload if isinstance(payload, dict) else {}
    texts = [text for name, text in members.items() if name.endswith("_id")]
    return _ids([key_text, fields.get("actor_id"), *texts])


def is_erased(record: Record, event_id: int | None) -> bool:
    """Tell whether a record is of a user who was erased after it. Raises `DatabaseError`."""
    users = named_in(record.key, record.value)
    if users is None:
        users = _ids([(record.key or b"").decode("ascii", "replace")])
    if event_id is None:
        # Undecodable: it is as old as its record.
        event_id = max(0, compose(record.timestamp_ms, 0, 0))
    [(erased,)] = fetch(_IS_ERASED, [list(users), event_id])
    return bool(erased)


def event_in(value: bytes | None) -> int | None:
    """Return the id of the event that the bytes of a record name, if they name one."""
    fields = _fields(value) or {}
    text = fields.get("event_id")
    return number_in(text) if isinstance(text, str) else None


def _fields(value: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object in the bytes, if one is."""
    try:
        fields = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _ids(texts: list[Any]) -> set[int]:
    numbers = [number_in(text) for text in texts if isinstance(text, str)]
    return {number for number in numbers if number}
