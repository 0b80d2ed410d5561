"""What a consumer of events needs to know of those who handle them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from eventbus.event import Event
from eventbus.record import Delivery, Record

Facts = Sequence[Any]


class Turn(Protocol):
    """What code that processes a batch may ask of the loop, at any time and in whichever thread it
    runs.
    """

    def stopping(self) -> bool:
        """Tell whether to stop here.

        Ask between any two transactions: to ask is also the sign of life of a lane.
        """

    def wait(self, seconds: float) -> None:
        """Wait, without losing the place in the group.

        Raises `WorkerStopping` as soon as it is time to leave.
        """

    def still_ours(self, record: Record) -> bool:
        """Tell whether the record's partition has stayed with this consumer since the batch was
        taken.
        """

    def bury(self, record: Record, error: BaseException, delivery: Delivery | None) -> None:
        """Return once `record` is durable as a dead letter.

        Raises `PublishFailed` or `DatabaseError` (try again; the offset must not be committed) and
        `DeadLetterFlood`.
        """


class Work(Protocol):
    """What a lane does with its share of a batch."""

    def process(self, records: Sequence[Record], turn: Turn) -> None:
        """Return when each record has had its effect, is a dead letter or no longer ours.

        Raises `WorkerStopping` when told to stop before that, and whatever must end the worker.
        """


class Membership(Protocol):
    """Whose the records of a batch are: a consumer of a group, or one that reads a topic on its
    own.
    """

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
    """What an app gives the loop: how its events are read, cut into transactions and applied.

    Lanes share it.
    """

    def to_fact(self, event: Event) -> F:
        """Return what the event says. Raises `PoisonEvent` for one that can never be applied."""

    def locked_keys(self, facts: Sequence[F]) -> Collection[int]:
        """Return the keys to lock while the facts are applied: of each its own, and any other whose
        rows it changes.
        """

    def plan(self, facts: Sequence[F]) -> list[list[F]]:
        """Split facts, in order, into lists that each fit one transaction."""

    def apply(self, facts: Sequence[F], *, careful: bool, resume_after: int | None) -> int | None:
        """Give the facts their effect within the current transaction; return None when all of it is
        there.

        Any other answer asks for the same call again in a new transaction with it as
        `resume_after`. `careful` means that rows of these facts may exist already.
        """

    def after_commit(self, facts: Sequence[F]) -> None:
        """Do what has to follow each commit; it is done again when committed events are delivered
        again.
        """


@dataclass(frozen=True, slots=True)
class Subscription:
    """A consumer group on a topic and what handles its events."""

    topic: str
    group: str
    lanes: int  # threads that process a batch side by side
    batch_max_events: int
    batch_max_wait: float  # seconds
    handlers: Handlers[Any]
