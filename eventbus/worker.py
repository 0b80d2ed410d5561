"""The long-running worker processes: signals, the metrics port and the loop."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import structlog

from eventbus import kafka, metrics, metrics_server, node_lease, producer, tracing
from eventbus.consumer import EventConsumer, Handle
from eventbus.dead_letter_count import DeadLetterCount
from eventbus.dead_letter_store import DeadLetterStore
from eventbus.dead_letter_writer import DeadLetterWriter
from eventbus.exceptions import DeadLetterFlood
from eventbus.heartbeat import Heart
from eventbus.lanes import Lanes
from eventbus.monitor import Monitor
from eventbus.processing import Processor
from eventbus.subscription import Subscription

EXIT_SECOND_SIGNAL = 130
EXIT_FLOOD = 3
EXIT_STUCK = 4
LEAVE_SECONDS = 30.0

log = structlog.get_logger(__name__)


def run_subscription(subscription: Subscription, metrics_port: int | None) -> None:
    """Consume `subscription` until SIGTERM or SIGINT, then leave cleanly. Exits with 3 on a flood of dead letters."""
    consumer = EventConsumer(
        subscription.topic, subscription.group, subscription.batch_max_events, subscription.batch_max_wait
    )
    lanes = Lanes(subscription.lanes, consumer.keep_alive)
    dead_letters = DeadLetterWriter(subscription.group)
    processor = Processor(subscription, dead_letters.write, lanes.wait, consumer.still_ours)
    with Heart(consumer, processor.worker_id, processor.slowest).beating():
        _run(consumer, partial(lanes.process, process=processor.process), metrics_port)


def run_dead_letter_store(metrics_port: int | None) -> None:
    """Store dead letters in PostgreSQL until SIGTERM or SIGINT, then leave cleanly."""
    unresolved = DeadLetterCount()
    metrics.export_dlq_size(unresolved.latest)
    consumer = EventConsumer(kafka.DEAD_LETTER_EVENTS, kafka.DLQ_GROUP, batch_max_events=100, batch_max_wait=0.005)
    with Heart(consumer).beating(), unresolved.counting():
        _run(consumer, DeadLetterStore(consumer.wait).process, metrics_port)


def _run(consumer: EventConsumer, handle: Handle, metrics_port: int | None) -> None:
    monitor = Monitor(consumer)
    if metrics_port is not None:
        _serve(metrics_port, monitor)
    tracing.start(f"feed-{consumer.group}")
    with monitor.watching(), _stop_on_signals(consumer):
        try:
            consumer.run(tracing.processing(handle, consumer.group))
        except DeadLetterFlood as flood:
            log.critical("worker_stopped", reason=str(flood))
            sys.exit(EXIT_FLOOD)
        finally:
            producer.close()
            node_lease.release()


def _serve(port: int, monitor: Monitor) -> None:
    try:
        metrics_server.serve(port, {"/healthz": monitor.healthz, "/readyz": monitor.readyz})
    except OSError as error:
        sys.exit(f"error: the metrics port {port} cannot be had: {error}. Choose another with --metrics-port.")


@contextmanager
def _stop_on_signals(consumer: EventConsumer) -> Iterator[None]:
    """Stop the consumer on the first SIGTERM or SIGINT, the process on the second or when leaving hangs."""
    asked = threading.Event()

    def stop(signal_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(EXIT_SECOND_SIGNAL)
        asked.set()
        log.info("stopping", signal=signal.Signals(signal_number).name)
        _leave_or_die()
        consumer.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_or_die() -> None:
    """Start the watchdog that ends the process when a clean leave takes too long."""
    timer = threading.Timer(LEAVE_SECONDS, os._exit, [EXIT_STUCK])
    timer.daemon = True
    timer.start()
