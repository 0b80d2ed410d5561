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

    result = "failed"  # in the metric
    code = "kafka_unavailable"  # in an answer of the API


class PublishTimedOut(PublishFailed):
    """Kafka did not acknowledge the event in time; it may have been stored all the same."""

    result = "timed_out"


class RecordTooLarge(PublishFailed):
    """The record is larger than Kafka takes."""

    result = "too_large"


class ProducerQueueFull(PublishFailed):
    """Too many events wait for Kafka already."""

    result = "queue_full"


class ProducerFailed(PublishFailed):
    """The connection to Kafka failed for good and is being made anew; the event may have been stored all the same."""

    result = "producer_failed"


class KafkaAway(PublishFailed):
    """Kafka has not answered for a while, so the event was not sent to it."""

    result = "refused"


class PublishForbidden(PublishFailed):
    """The topics are made so that an acknowledged write may be lost."""

    result = "forbidden"


class TopicsUnchecked(PublishFailed):
    """It is not known yet whether an acknowledged write is safe in Kafka's topics."""

    result = "unchecked"
    code = "topics_unchecked"


class ServerAway(EventBusError):
    """A server has not answered for a while, and someone else is trying already."""

    def __init__(self, server: str) -> None:
        super().__init__(f"{server} has not answered for a while.")
        self.server = server


class IdsUnavailable(EventBusError):
    """No new id can be given out: this process has no lease from PostgreSQL to mint ids by, or not its time."""


class IdempotencyKeyReused(EventBusError):
    """This Idempotency-Key was used for another request."""


class WorkerStopping(EventBusError):
    """The worker was told to stop before the batch was finished; nothing of the rest is committed."""


class DeadLetterFlood(EventBusError):
    """Too many events became dead letters within a short time; the worker stops before it drains the topic."""


class WorkerHangs(EventBusError):
    """A lane gives no sign of life any more; the worker ends, for Kafka has given its partitions to others."""
