"""Dead letters to test with: as records of the topic, and as stored entries."""

import itertools

from eventbus import envelope, kafka
from eventbus.dead_letter_headers import Claim
from eventbus.deadletters import store as dead_letter_store
from eventbus.models import DeadLetter, DeadLetterFailure
from eventbus.record import Record
from tests.eventbus.events import TYPE, an_event

_offsets = itertools.count()


def a_dead_letter(
    *,
    value: bytes | None = None,
    key: bytes | None = b"7",
    error: str = "builtins.ValueError",
    message: str = "bad note 41",
    origin_offset: int | None = None,
    entry: DeadLetter | None = None,
    event_id: int = 41,
    **context: str,
) -> Record:
    """Return a record as the dead-letter writer leaves it, `entry` set for a replay that failed
    again.
    """
    offset = next(_offsets)
    headers = {
        "topic": kafka.FEED_EVENTS,
        "partition": "3",
        "offset": str(offset if origin_offset is None else origin_offset),
        "timestamp_ms": "1700000000123",
        "group": "note-takers",
        "exception": error,
        "message": message,
        "stack_trace": "Traceback …",
        "attempts": "3",
        "first_failed_at": "2026-01-02T12:00:00.345+00:00",
        "event_id": str(event_id),
        "event_type": TYPE,
        **context,
    }
    pairs: list[tuple[str, bytes | None]] = [
        ("traceparent", b"00-1-2-01"),
        ("binary", b"\xff\x00"),
        ("none", None),
    ]
    pairs += [(f"dlq.{name}", text.encode()) for name, text in headers.items()]
    body = envelope.encode(an_event(event_id, key=7)) if value is None else value
    if entry is not None:
        pairs.append(Claim.make(entry.id, entry.token, key, body).to_header())
    return Record(kafka.DEAD_LETTER_EVENTS, 0, offset, key, body, pairs, 1_767_355_200_345)


def an_entry(**dead_letter: object) -> DeadLetter:
    """Store a dead letter and return its entry."""
    dead_letter_store.store([a_dead_letter(**dead_letter)])  # type: ignore[arg-type]
    return DeadLetterFailure.objects.latest("id").entry
