"""Every exception of the event path; the docstring of each is its message."""


class EventBusError(Exception):
    """The event path failed."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class PoisonEvent(EventBusError):
    """The event can never be processed, however often it is tried."""


class UndecodableEvent(PoisonEvent):
    """The bytes are not a JSON envelope."""


class InvalidEvent(PoisonEvent):
    """The envelope or its payload breaks the schema."""


class UnknownEventType(PoisonEvent):
    """Nothing here handles this event type and version."""


class PublishFailed(EventBusError):
    """Kafka did not acknowledge the event."""

    result = "failed"


class PublishTimedOut(PublishFailed):
    """Kafka did not acknowledge the event in time; it may have been stored all the same."""

    result = "timed_out"


class RecordTooLarge(PublishFailed):
    """The record is larger than Kafka takes."""

    result = "too_large"


class ProducerQueueFull(PublishFailed):
    """Too many events wait for Kafka already."""

    result = "queue_full"


class IdsUnavailable(EventBusError):
    """No snowflake node id could be leased from PostgreSQL, so no new id can be given out."""


class IdempotencyKeyReused(EventBusError):
    """This Idempotency-Key was used for another request."""


class WorkerStopping(EventBusError):
    """The worker was told to stop before the batch was finished; nothing of the rest is committed."""


class DeadLetterFlood(EventBusError):
    """Too many events in a row went to the dead letters; the worker stops before it drains the topic."""


class WorkerHangs(EventBusError):
    """A lane gives no sign of life any more; the worker ends, for Kafka has given its partitions to others."""
