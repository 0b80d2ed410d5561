"""The envelope every event travels in, and its JSON form.

    {"event_id": "…", "type": "post.created", "version": 1, "actor_id": "…", "occurred_at": "…", "payload": {…}}

Ids are decimal strings (JavaScript's numbers end at 2^53), times are RFC 3339 in UTC with
milliseconds.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache

import orjson

from eventbus.event import Event, Fields
from eventbus.exceptions import InvalidEvent, UndecodableEvent
from eventbus.ids import clock
from eventbus.ids.snowflake import id_in, is_id, milliseconds_of

MAX_TYPE_CHARS = 64

# The highest id wins and heads the feeds, for as long as its time lies ahead. Ours are ahead by
# half a second at most.
MAX_AHEAD_MS = 24 * 3_600_000

# ISO 8601, which Python reads, is wider: week dates, times without seconds, commas, basic format.
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def encode(event: Event) -> bytes:
    """Return the JSON bytes of `event`.

    Raises `InvalidEvent` if `decode` would refuse them, or without a zone.
    """
    if event.occurred_at.utcoffset() is None:
        raise InvalidEvent("occurred_at must have a zone.")
    fields = {
        "event_id": str(event.event_id),
        "type": event.type,
        "version": event.version,
        "actor_id": str(event.actor_id),
        "payload": event.payload,
    }
    # What `decode` will ask of them; to decode the bytes would cost more than to encode them.
    for name, number in (
        ("event_id", event.event_id),
        ("actor_id", event.actor_id),
        ("key", event.key),
    ):
        if not is_id(number):
            raise _no_id(name)
    read_text(fields, "type", max_length=MAX_TYPE_CHARS)
    _read_version(fields)
    _read_payload(fields)
    try:
        fields["occurred_at"] = format_time(event.occurred_at)
        return orjson.dumps(fields)
    except orjson.JSONEncodeError as error:
        raise InvalidEvent(f"The payload is not JSON: {error}") from error
    except OverflowError as error:
        raise InvalidEvent("occurred_at must lie within the years 1 to 9999 in UTC.") from error


def encode_key(key: int) -> bytes:
    """Return the Kafka key: the decimal user id, so that every client's murmur2 puts it in the same
    partition.
    """
    return str(key).encode()


def decode(value: bytes | None, key: bytes | None) -> Event:
    """Return the event in a Kafka record. Raises `UndecodableEvent` or `InvalidEvent`."""
    try:
        fields = orjson.loads(value or b"")
    except orjson.JSONDecodeError as error:
        raise UndecodableEvent(f"The value is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UndecodableEvent("The value is not a JSON object.")
    return Event(
        event_id=read_minted_id(fields, "event_id"),
        type=read_text(fields, "type", max_length=MAX_TYPE_CHARS),
        version=_read_version(fields),
        actor_id=read_id(fields, "actor_id"),
        occurred_at=read_time(fields, "occurred_at"),
        key=parse_id((key or b"").decode("ascii", "replace"), "key"),
        payload=_read_payload(fields),
    )


def read_id(fields: Fields, name: str) -> int:
    """Return the id in `fields[name]`, 1 … 2^63-1. Raises `InvalidEvent`."""
    return parse_id(fields.get(name), name)


def read_minted_id(fields: Fields, name: str) -> int:
    """Return the snowflake id in `fields[name]`.

    Raises `InvalidEvent`, also for one from after tomorrow.
    """
    minted = read_id(fields, name)
    ahead_ms = milliseconds_of(minted) - clock.now_ms()
    if ahead_ms > MAX_AHEAD_MS:
        raise InvalidEvent(f"{name} is an id from {ahead_ms // 3_600_000} hours in the future.")
    return minted


def parse_id(text: object, name: str) -> int:
    """Return the id written as a decimal string. Raises `InvalidEvent` naming the field."""
    number = id_in(text)
    if number is None:
        raise _no_id(name)
    return number


def _no_id(name: str) -> InvalidEvent:
    return InvalidEvent(f"{name} must be a decimal string of 1 to 2^63-1.")


def read_text(fields: Fields, name: str, *, max_length: int, min_length: int = 1) -> str:
    """Return the string in `fields[name]`, `min_length` … `max_length` characters without NUL.

    Raises `InvalidEvent`.
    """
    text = fields.get(name)
    if isinstance(text, str) and min_length <= len(text) <= max_length and "\0" not in text:
        return text
    raise InvalidEvent(
        f"{name} must be a string of {min_length} to {max_length} characters without NUL."
    )


def read_time(fields: Fields, name: str) -> datetime:
    """Return the RFC 3339 time in `fields[name]`, in UTC, to the microsecond.

    Raises `InvalidEvent`.
    """
    text = fields.get(name)
    try:
        if isinstance(text, str) and _RFC_3339.fullmatch(text):
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # a day that is not in the calendar, or a year that is not in Python's
    raise InvalidEvent(f"{name} must be an RFC 3339 time with a zone.")


# A new post's time is written twice, and posts of the same millisecond share theirs.
@lru_cache(maxsize=1_000)
def format_time(moment: datetime) -> str:
    """Return `moment` as RFC 3339 in UTC with milliseconds and a Z."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")[: -len("+00:00")] + "Z"


def _read_version(fields: Fields) -> int:
    version = fields.get("version")
    if type(version) is int and version >= 1:
        return version
    raise InvalidEvent("version must be a whole number of 1 or more.")


def _read_payload(fields: Fields) -> Fields:
    payload = fields.get("payload")
    if isinstance(payload, dict):
        return payload
    raise InvalidEvent("payload must be a JSON object.")
