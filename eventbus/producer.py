"""Publishing to Kafka: a call returns only when the brokers have acknowledged the record.

One producer a process, made at the first use. A producer made before a fork silently loses messages in the child,
so a forked child starts without one.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable, Sequence

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer
from django.conf import settings

from eventbus import correlation, envelope, kafka, metrics, tracing
from eventbus.envelope import Event
from eventbus.exceptions import ProducerQueueFull, PublishFailed, PublishTimedOut, RecordTooLarge

Headers = Sequence[tuple[str, bytes | None]]
OnDelivery = Callable[[KafkaError | None], None]

QUEUE_FULL_PAUSE = 0.01  # seconds
POLL_SECONDS = 0.2
FLUSH_SECONDS = 10.0
# librdkafka reports a timed-out delivery itself; this only covers a report that never comes.
REPORT_GRACE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class EventProducer:
    """An idempotent producer with its delivery-report thread."""

    def __init__(self) -> None:
        self._producer = Producer(kafka.producer_config() | {"error_cb": self._on_error})
        self.failed = False
        self._closing = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="kafka-delivery-reports", daemon=True)
        self._poller.start()

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, on_delivery: OnDelivery
    ) -> None:
        """Queue one record; `on_delivery` gets None or the error, from another thread. It must not raise.

        Waits for room in the queue up to the publish time-out, then raises `ProducerQueueFull`. Raises
        `PublishFailed` for what the client refuses by itself; `RecordTooLarge` of these for a record that is too big.
        """
        deadline = time.monotonic() + settings.KAFKA_PUBLISH_TIMEOUT_MS / 1000
        while True:
            try:
                self._producer.produce(
                    topic,
                    key=key,
                    value=value,
                    headers=list(headers),
                    on_delivery=lambda error, _message: on_delivery(error),
                )
            except BufferError as error:
                if time.monotonic() >= deadline:
                    raise ProducerQueueFull from error
                time.sleep(QUEUE_FULL_PAUSE)
            except KafkaException as error:
                raise _refusal(error.args[0]) from error
            else:
                return

    def flush(self, timeout: float = FLUSH_SECONDS) -> int:
        """Wait up to `timeout` seconds for every queued record; return how many are still unreported."""
        return int(self._producer.flush(timeout))

    def close(self) -> None:
        """Flush and stop the thread; says so in the log when records were left unreported."""
        left = self.flush()
        self._closing.set()
        if left:
            log.error("producer_closed_with_undelivered_records", count=left)

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(POLL_SECONDS)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self.failed = True
        log.warning("kafka_producer_error", error=error.str(), fatal=error.fatal())


class _Delivery:
    """The delivery report of one record, awaited by the thread that published it."""

    def __init__(self) -> None:
        self._reported = threading.Event()
        self.error: KafkaError | None = None

    def report(self, error: KafkaError | None) -> None:
        self.error = error
        self._reported.set()

    def wait(self, timeout: float) -> None:
        if not self._reported.wait(timeout):
            raise PublishTimedOut
        if self.error is None:
            return
        raise _refusal(self.error)


def _refusal(error: KafkaError) -> PublishFailed:
    if error.code() in (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT):
        return PublishTimedOut(f"Kafka did not acknowledge in time: {error.str()}")
    kind = RecordTooLarge if error.code() == KafkaError.MSG_SIZE_TOO_LARGE else PublishFailed
    return kind(f"Kafka refused the event: {error.str()}")


def publish(event: Event, headers: Headers = ()) -> None:
    """Publish `event` to the feed topic and return once it is durable there (`acks=all`).

    Raises `PublishFailed`; its subclass `PublishTimedOut` means the event may have been stored all the same.
    """
    value = envelope.encode(event)
    correlation.bind_event(event.event_id)
    try:
        with tracing.publishing(event, headers) as headers_with_context:
            publish_record(kafka.FEED_EVENTS, envelope.encode_key(event.key), value, headers_with_context)
    except PublishFailed as error:
        metrics.events_published_total.labels(event.type, error.result).inc()
        raise
    log.debug("event_published", type=event.type)
    metrics.events_published_total.labels(event.type, "ok").inc()


def publish_record(topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
    """Publish raw bytes and return once they are durable. Raises `PublishFailed`; of these `RecordTooLarge`."""
    delivery = _Delivery()
    get().send(topic, key, value, headers, delivery.report)
    delivery.wait(settings.KAFKA_PUBLISH_TIMEOUT_MS / 1000 + REPORT_GRACE_SECONDS)


_producer: EventProducer | None = None
_producer_lock = threading.Lock()


def get() -> EventProducer:
    """Return this process's producer; a producer that failed for good is flushed and replaced."""
    global _producer
    producer = _producer
    if producer is not None and not producer.failed:
        return producer
    with _producer_lock:
        if _producer is not None and _producer.failed:
            metrics.events_published_total.labels("", "producer_recreated").inc()
            _producer.close()
            _producer = None
        if _producer is None:
            _producer = EventProducer()
        return _producer


def close() -> None:
    """Flush and drop this process's producer, if there is one."""
    global _producer
    with _producer_lock:
        producer, _producer = _producer, None
    if producer:
        producer.close()


def _forget_after_fork() -> None:
    global _producer, _producer_lock
    _producer, _producer_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close)
