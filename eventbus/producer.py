"""Publishing to Kafka: a call returns only when the brokers have acknowledged the record.

A thread publishes with `publish`, an event loop with `publish_soon`. One producer a process, made
at the first use. A producer made before a fork silently loses messages in the child, so a forked
child starts without one. One that failed for good, as Kafka calls it when another took its place or
the brokers forgot it, is replaced at the next use.
"""

import asyncio
import atexit
import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from django.conf import settings

from eventbus import envelope, kafka, metrics
from eventbus.breaker import KAFKA, NO_TRIAL
from eventbus.event import Event
from eventbus.exceptions import (
    KafkaAway,
    ProducerFailed,
    ProducerQueueFull,
    PublishFailed,
    PublishForbidden,
    PublishTimedOut,
    RecordTooLarge,
    ServerAway,
    TopicsUnchecked,
)
from eventbus.record import Headers
from eventbus.telemetry import correlation, tracing

OnDelivery = Callable[[KafkaError | None], None]

QUEUE_FULL_PAUSE = 0.01  # seconds
POLL_SECONDS = 0.2
FLUSH_SECONDS = 10.0
# librdkafka reports a timed-out delivery itself; this only covers a report that never comes.
REPORT_GRACE_SECONDS = 1.0
# A producer for which every delivery has timed out for so long is replaced.
GIVEN_UP_AFTER_SECONDS = 4.0

_TIMED_OUT = (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT)
# The brokers do not know the producer any more, or know another in its place. Not all of these come
# as fatal errors.
_PRODUCER_UNKNOWN = (
    KafkaError._FATAL,
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.UNKNOWN_PRODUCER_ID,
    90,  # PRODUCER_FENCED, which confluent-kafka has no name for
)
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)

log = structlog.get_logger(__name__)


class EventProducer:
    """An idempotent producer with its delivery-report thread.

    `failed` says that it failed for good: nothing can be published with it any more, and what it
    had in hand has been reported as failed.
    """

    def __init__(self) -> None:
        self._producer = Producer(kafka.producer_config() | {"error_cb": self._on_error})
        self.failed = False
        self._timing_out_since: float | None = None
        self._closing = threading.Event()
        self._poller = threading.Thread(
            target=self._poll, name="kafka-delivery-reports", daemon=True
        )
        self._poller.start()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        on_delivery: OnDelivery,
        wait_until: float | None = None,
    ) -> None:
        """Queue one record; `on_delivery` gets None or the error, from another thread. It must not
        raise.

        Waits for room in the queue up to that monotonic time, or else up to the publish time-out,
        then raises `ProducerQueueFull`. Raises `PublishFailed` for what the client refuses by
        itself; `RecordTooLarge` of these for a record that is too big.
        """
        if wait_until is None:
            wait_until = time.monotonic() + settings.KAFKA_PUBLISH_TIMEOUT_MS / 1000
        while True:
            try:
                self.send_now(
                    topic, key, value, list(headers), lambda error, _message: on_delivery(error)
                )
            except ProducerQueueFull:
                if time.monotonic() >= wait_until:
                    raise
                time.sleep(QUEUE_FULL_PAUSE)
            else:
                return

    def send_now(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, str | bytes | None]],
        on_delivery: Callable[[KafkaError | None, Message], None],
    ) -> None:
        """Queue one record without waiting; raises `ProducerQueueFull` where there is no room, else
        as `send`.
        """
        try:
            self._producer.produce(
                topic, value, key, headers=headers, on_delivery=partial(self._report, on_delivery)
            )
        except BufferError as error:
            raise ProducerQueueFull from error
        except KafkaException as error:
            self._note_fatal(error.args[0])
            raise refusal(error.args[0]) from error

    def flush(self, timeout: float = FLUSH_SECONDS) -> int:
        """Wait up to `timeout` seconds for every queued record; return how many are still
        unreported.
        """
        return int(self._producer.flush(timeout))

    def topics(self, timeout: float) -> Sequence[str]:
        """Return the topics that the brokers have, asked on this producer's own connections.

        Raises `KafkaException` when they do not answer within `timeout` seconds.
        """
        return list(self._producer.list_topics(timeout=timeout).topics)

    def close(self) -> None:
        """Flush and stop the thread; says so in the log when records were left unreported."""
        left = self.flush()
        self._closing.set()
        if left:
            log.error("producer_closed_with_undelivered_records", count=left)

    def _report(
        self,
        on_delivery: Callable[[KafkaError | None, Message], None],
        error: KafkaError | None,
        message: Message,
    ) -> None:
        if error is None:
            self._timing_out_since = None
        else:
            self._note_fatal(error)
            self._note_timeout(error)
        on_delivery(error, message)

    def _poll(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(POLL_SECONDS)
            except KafkaException as error:
                # Where confluent-kafka tells of a fatal error; `error_cb` hears of it in other
                # versions.
                self._note_fatal(error.args[0])
            hand_over_reports()
            if self.failed:
                self._let_go()
                return

    def _let_go(self) -> None:
        """Have all that is in hand reported, as failed: nothing of it can be delivered any more."""
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        deadline = time.monotonic() + FLUSH_SECONDS
        while len(self._producer) and time.monotonic() < deadline:
            try:
                self._producer.poll(POLL_SECONDS)
            except KafkaException as error:
                log.debug("kafka_producer_error", error=str(error))
            hand_over_reports()

    def _on_error(self, error: KafkaError) -> None:
        self._note_fatal(error)
        log.warning("kafka_producer_error", error=error.str(), fatal=error.fatal())

    def _note_fatal(self, error: KafkaError) -> None:
        if not self.failed and _is_for_good(error):
            self.failed = True
            log.error("kafka_producer_failed", error=error.str())

    def _note_timeout(self, error: KafkaError) -> None:
        # Seen with brokers that were wiped and started anew: they answer, and yet nothing is
        # delivered any more, for as long as this producer lives. While Kafka really is away, a new
        # one every few seconds does no harm.
        if error.code() not in _TIMED_OUT:
            return
        now = time.monotonic()
        if self._timing_out_since is None:
            self._timing_out_since = now
        elif now - self._timing_out_since > GIVEN_UP_AFTER_SECONDS and not self.failed:
            self.failed = True
            log.warning("kafka_producer_given_up", error=error.str())


def refusal(error: KafkaError) -> PublishFailed:
    """Return what to raise for an error that Kafka's client has reported for a record."""
    if error.code() in _TIMED_OUT:
        return PublishTimedOut(f"Kafka did not acknowledge in time: {_sentence(error)}")
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return RecordTooLarge(f"Kafka refused the event: {_sentence(error)}")
    if error.code() in _PURGED or _is_for_good(error):
        return ProducerFailed()
    return PublishFailed(f"Kafka refused the event: {_sentence(error)}")


def _is_for_good(error: KafkaError) -> bool:
    return bool(error.fatal()) or error.code() in _PRODUCER_UNKNOWN


def _sentence(error: KafkaError) -> str:
    return f"{error.str().rstrip('.')}."


class _Report:
    """What Kafka reports of one record, awaited by the thread that published it."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self.error: KafkaError | None = None

    def arrive(self, error: KafkaError | None) -> None:
        self.error = error
        self._arrived.set()

    def wait(self, timeout: float) -> None:
        if not self._arrived.wait(timeout):
            raise PublishTimedOut
        if self.error is not None:
            raise refusal(self.error)


class LoopDeliveries:
    """The delivery reports that an event loop waits for, one wake-up of it for each poll of the
    producer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reported: list[tuple[asyncio.Future[None], KafkaError | None]] = []
        self._awaited: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._published: dict[str, int] = defaultdict(int)
        # On the loop each of these questions costs a post more than it gives, so they are asked
        # once.
        self.logs_each = log.is_enabled_for(logging.DEBUG)
        self._seconds = settings.KAFKA_PUBLISH_TIMEOUT_MS / 1000 + REPORT_GRACE_SECONDS
        self._look()

    def send(
        self, topic: str, key: bytes, value: bytes, headers: list[tuple[str, str | bytes | None]]
    ) -> "asyncio.Future[None]":
        """Queue one record and return the future of its delivery.

        Raises as `EventProducer.send_now`.
        """
        delivery = self._loop.create_future()
        get().send_now(topic, key, value, headers, partial(self._report, delivery))
        self._awaited.append((self._loop.time() + self._seconds, delivery))
        return delivery

    def count(self, event_type: str) -> None:
        """Count an event that Kafka has acknowledged; the metric is written a few times a
        second.
        """
        self._published[event_type] += 1

    def _report(
        self, delivery: "asyncio.Future[None]", error: KafkaError | None, _message: Message
    ) -> None:
        # Called within the producer's poll, in its thread.
        self._reported.append((delivery, error))

    def hand_over(self) -> None:
        """Tell the loop what has been reported since; for the thread that polls."""
        if not self._reported:
            return
        reported, self._reported = self._reported, []
        try:
            self._loop.call_soon_threadsafe(self._settle, reported)
        except RuntimeError:
            log.debug("loop_closed_before_deliveries", count=len(reported))

    def _settle(self, reported: list[tuple["asyncio.Future[None]", KafkaError | None]]) -> None:
        for delivery, error in reported:
            if delivery.done():
                continue
            if error is None:
                delivery.set_result(None)
            else:
                delivery.set_exception(refusal(error))

    def _look(self) -> None:
        self._give_up_on_the_overdue()
        published, self._published = self._published, defaultdict(int)
        for event_type, count in published.items():
            metrics.events_were_published(event_type, count)
        self._loop.call_later(POLL_SECONDS, self._look)

    def _give_up_on_the_overdue(self) -> None:
        now = self._loop.time()
        while self._awaited and (self._awaited[0][1].done() or self._awaited[0][0] < now):
            _wait_until, delivery = self._awaited.popleft()
            if not delivery.done():
                delivery.set_exception(PublishTimedOut())


_loop_deliveries: LoopDeliveries | None = None


def attach(loop: asyncio.AbstractEventLoop) -> None:
    """Let `publish_soon` be used on `loop`, the only one of this process that publishes."""
    global _loop_deliveries
    _loop_deliveries = LoopDeliveries(loop)


def hand_over_reports() -> None:
    """Tell the loop, if there is one, what the producer has reported; for the threads that poll
    one.
    """
    if _loop_deliveries is not None:
        _loop_deliveries.hand_over()


def publish(event: Event, headers: Headers = ()) -> None:
    """Publish `event` to the feed topic and return once it is durable there (`acks=all`).

    Raises `PublishFailed`; its subclass `PublishTimedOut` means the event may have been stored all
    the same.
    """
    value = envelope.encode(event)
    correlation.bind_event(event.event_id)
    with Attempt(event), tracing.publishing(event, headers) as headers_with_context:
        publish_record(
            kafka.FEED_EVENTS, envelope.encode_key(event.key), value, headers_with_context
        )
    metrics.events_were_published(event.type, 1)
    log.debug("event_published", type=event.type)


def publish_all(events: Sequence[Event], headers: Headers = ()) -> None:
    """Publish `events`, all of them on their way together, and return once each is durable.

    Waits no longer than for one. Raises as `publish`; then some of them may have been stored.
    """
    values = [envelope.encode(event) for event in events]
    correlation.bind_events([event.event_id for event in events])
    with Attempt(*events):
        _publish_together(events, values, headers)
    for event in events:
        metrics.events_were_published(event.type, 1)
    log.debug("events_published", count=len(events))


def _publish_together(events: Sequence[Event], values: Sequence[bytes], headers: Headers) -> None:
    wait_until = time.monotonic() + settings.KAFKA_PUBLISH_TIMEOUT_MS / 1000
    producer = get()
    reports: list[_Report] = []
    for event, value in zip(events, values, strict=True):
        report = _Report()
        key = envelope.encode_key(event.key)
        with tracing.publishing(event, headers) as headers_with_context:
            producer.send(
                kafka.FEED_EVENTS, key, value, headers_with_context, report.arrive, wait_until
            )
        reports.append(report)
    for report in reports:
        left = wait_until - time.monotonic()
        report.wait(max(0.0, left) + REPORT_GRACE_SECONDS)


async def publish_soon(event: Event, headers: Headers = ()) -> None:
    """Do as `publish` on the event loop that was attached, which goes on with others meanwhile."""
    if _loop_deliveries is None:
        raise RuntimeError("No event loop was attached.")
    value = envelope.encode(event)
    with Attempt(event):
        await _loop_deliveries.send(
            kafka.FEED_EVENTS, envelope.encode_key(event.key), value, list(headers)
        )
    _loop_deliveries.count(event.type)
    if _loop_deliveries.logs_each:
        correlation.bind_headers(headers, event.event_id)
        log.debug("event_published", type=event.type)


class Attempt:
    """A `with` around what publishes events: asks whether it may, and tells the breaker and the
    metrics how it went.

    A class, for a generator would cost each post on the loop more.
    """

    __slots__ = ("_events", "_trial")

    def __init__(self, *events: Event) -> None:
        self._events = events
        self._trial = NO_TRIAL

    def __enter__(self) -> None:
        try:
            self._trial = _enter()
        except PublishFailed as error:
            _count_failures(self._events, error)
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, PublishFailed):
            _count_failures(self._events, error)
        if isinstance(error, PublishTimedOut | ProducerQueueFull | ProducerFailed):
            KAFKA.failed(error, self._trial)
        elif error is None or isinstance(error, PublishFailed):
            KAFKA.succeeded()  # it has answered, if with a refusal
        else:
            KAFKA.gave_up(self._trial)


def _enter() -> int:
    if _bar is not None:
        kind, reason = _bar
        raise kind(reason)
    try:
        return KAFKA.enter()
    except ServerAway as error:
        raise KafkaAway from error


def _count_failures(events: Sequence[Event], error: PublishFailed) -> None:
    for event in events:
        metrics.events_published_total.labels(event.type, error.result).inc()


def publish_record(
    topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
) -> None:
    """Publish raw bytes and return once they are durable.

    Raises `PublishFailed`; of these `RecordTooLarge`.
    """
    report = _Report()
    get().send(topic, key, value, headers, report.arrive)
    report.wait(settings.KAFKA_PUBLISH_TIMEOUT_MS / 1000 + REPORT_GRACE_SECONDS)


# Why nothing may be published, and the error that says so; None while it may.
_bar: tuple[type[PublishFailed], str] | None = None


def forbid(reason: str) -> None:
    """Have `publish` and `publish_soon` refuse for this reason; an empty one allows them again."""
    global _bar
    if reason and reason != forbidden():
        log.error("publishing_is_forbidden", reason=reason)
    _bar = (PublishForbidden, reason) if reason else None


def await_check() -> None:
    """Have them refuse until `forbid` tells what was found about the topics."""
    global _bar
    _bar = (TopicsUnchecked, str(TopicsUnchecked()))


def forbidden() -> str:
    """Return why nothing may be published; empty if it may."""
    return "" if _bar is None else _bar[1]


_producer: EventProducer | None = None
_producer_lock = threading.Lock()


def get() -> EventProducer:
    """Return this process's producer, a new one if the last has failed for good.

    Waits for no broker.
    """
    global _producer
    producer = _producer
    if producer is not None and not producer.failed:
        return producer
    with _producer_lock:
        if _producer is not None and _producer.failed:
            metrics.producers_replaced_total.inc()
            log.warning("kafka_producer_replaced")
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
    global _producer, _producer_lock, _loop_deliveries
    _producer, _producer_lock, _loop_deliveries = None, threading.Lock(), None


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close)
