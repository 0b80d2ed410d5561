"""A record as Kafka stored it, and on its way through processing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import methodcaller
from typing import Any

from confluent_kafka import Message

from eventbus.event import Event

Headers = Sequence[tuple[str, bytes | None]]


def _known(number: int | None) -> int:
    """Return `number`: a consumed message always has it, only one to be produced may not."""
    if number is None:
        raise ValueError("not a consumed message")
    return number


# The client returns a list with a hole and an exception set when the name of a header is not UTF-8.
# Called through methodcaller, Python notices and raises SystemError. Where CPython has specialised
# a plain `message.headers()`, it does not: the exception comes up somewhere later, and looking into
# the list crashes the process.
_read_headers = methodcaller("headers")


def _headers(message: Message) -> tuple[Headers, str]:
    """Return the headers, or none and the reason: for one such name the client gives up all of
    them.
    """
    try:
        return _read_headers(message) or (), ""
    except (SystemError, UnicodeDecodeError) as error:
        return (), f"The name of a header is not UTF-8: {error.__cause__ or error}"


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record as it was stored, bytes untouched."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    headers_error: str = ""
    """Why `headers` is empty although the record has some; "" when they could be read."""

    @classmethod
    def from_message(cls, message: Message) -> "Record":
        """Return the record in `message`, whatever its bytes; call it once a message."""
        headers, headers_error = _headers(message)
        return cls(
            topic=message.topic() or "",
            partition=_known(message.partition()),
            offset=_known(message.offset()),
            key=message.key(),
            value=message.value(),
            headers=headers,
            timestamp_ms=message.timestamp()[1],
            headers_error=headers_error,
        )

    @property
    def topic_partition(self) -> tuple[str, int]:
        return self.topic, self.partition


@dataclass(slots=True)
class Delivery:
    """One delivered event on its way through processing."""

    record: Record
    event: Event
    taken_at: float  # monotonic seconds
    fact: Any = None  # what the handlers have read in the event
    attempts: int = 0  # how often it was tried again, alone, after the failure of its batch
    first_failed_at: datetime | None = None
    replays: list[Record] = field(default_factory=list)
    """Later records of the same event in the batch that replay a dead letter; they share its
    outcome.
    """

    @property
    def records(self) -> list[Record]:
        return [self.record, *self.replays]
