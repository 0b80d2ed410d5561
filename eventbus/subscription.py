"""What a consumer of events needs to know of those who handle them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import methodcaller
from typing import Any, Protocol, TypeVar

from confluent_kafka import Message

from eventbus.envelope import Event

Facts = Sequence[Any]
Headers = Sequence[tuple[str, bytes | None]]


def _known(number: int | None) -> int:
    """Return `number`: a consumed message always has it, only one to be produced may not."""
    if number is None:
        raise ValueError("not a consumed message")
    return number


# The client returns a list with a hole and an exception set when the name of a header is not UTF-8. Called through
# methodcaller, Python notices and raises SystemError. Where CPython has specialised a plain `message.headers()`, it
# does not: the exception comes up somewhere later, and looking into the list crashes the process.
_read_headers = methodcaller("headers")


def _headers(message: Message) -> tuple[Headers, str]:
    """Return the headers, or none and the reason: for one such name the client gives up all of them."""
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
    """Later records of the same event in the batch that replay a dead letter; they share its outcome."""

    @property
    def records(self) -> list[Record]:
        return [self.record, *self.replays]


class Turn(Protocol):
    """What code that processes a batch may ask of the loop, at any time and in whichever thread it runs."""

    def stopping(self) -> bool:
        """Tell whether to stop here. Ask between any two transactions: to ask is also the sign of life of a lane."""

    def wait(self, seconds: float) -> None:
        """Wait, without losing the place in the group. Raises `WorkerStopping` as soon as it is time to leave."""

    def still_ours(self, record: Record) -> bool:
        """Tell whether the record's partition has stayed with this consumer since the batch was taken."""

    def bury(self, record: Record, error: BaseException, delivery: Delivery | None) -> None:
        """Return once `record` is durable as a dead letter.

        Raises `PublishFailed` or `DatabaseError` (try again; the offset must not be committed) and `DeadLetterFlood`.
        """


class Work(Protocol):
    """What a lane does with its share of a batch."""

    def process(self, records: Sequence[Record], turn: Turn) -> None:
        """Return when each record has had its effect, is a dead letter or no longer ours.

        Raises `WorkerStopping` when told to stop before that, and whatever must end the worker.
        """


class Membership(Protocol):
    """Whose the records of a batch are: a consumer of a group, or one that reads a topic on its own."""

    def still_ours(self, record: Record) -> bool:
        """See `Turn`."""


class Burial(Protocol):
    """Where dead letters go."""

    def write(self, record: Record, error: BaseException, delivery: Delivery | None) -> None:
        """See `Turn.bury`."""


class Fact(Protocol):
    """What an event says, in a type of its app."""

    @property
    def event_id(self) -> int: ...


F = TypeVar("F", bound=Fact)


class Handlers(Protocol[F]):
    """What an app gives the loop: how its events are read, cut into transactions and applied. Lanes share it."""

    def to_fact(self, event: Event) -> F:
        """Return what the event says. Raises `PoisonEvent` for one that can never be applied."""

    def plan(self, facts: Sequence[F]) -> list[list[F]]:
        """Split facts, in order, into lists that each fit one transaction."""

    def apply(self, facts: Sequence[F], *, careful: bool, resume_after: int | None) -> int | None:
        """Give the facts their effect within the current transaction; return None when all of it is there.

        Any other answer asks for the same call again in a new transaction with it as `resume_after`. `careful` means
        that rows of these facts may exist already.
        """

    def after_commit(self, facts: Sequence[F]) -> None:
        """Do what has to follow each commit; it is done again when committed events are delivered again."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A consumer group on a topic and what handles its events."""

    topic: str
    group: str
    lanes: int  # threads that process a batch side by side
    batch_max_events: int
    batch_max_wait: float  # seconds
    handlers: Handlers[Any]
