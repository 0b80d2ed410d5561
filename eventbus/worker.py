"""The long-running worker processes: signals, the metrics port and the loop."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from eventbus import kafka, metrics, producer
from eventbus.arguments import MetricsAddress
from eventbus.consume.consumer import EventConsumer
from eventbus.consume.lanes import Lanes
from eventbus.consume.leaving import EXIT_STUCK, Leaving
from eventbus.consume.processing import Processor
from eventbus.deadletters.count import DeadLetterCount
from eventbus.deadletters.store import DeadLetterStore
from eventbus.deadletters.writer import DeadLetterWriter
from eventbus.exceptions import DeadLetterFlood, WorkerHangs
from eventbus.ids import node_lease
from eventbus.subscription import Subscription
from eventbus.telemetry import tracing
from eventbus.watch import metrics_server
from eventbus.watch.heartbeat import Heart
from eventbus.watch.monitor import Monitor

EXIT_SECOND_SIGNAL = 130
EXIT_FLOOD = 3
LEAVE_SECONDS = 30.0

log = structlog.get_logger(__name__)


def run_subscription(subscription: Subscription, metrics_at: MetricsAddress | None) -> None:
    """Consume `subscription` until SIGTERM or SIGINT, then leave cleanly.

    Exits with 3 on a flood of dead letters.
    """
    leaving = Leaving()
    consumer = EventConsumer(
        subscription.topic,
        subscription.group,
        subscription.batch_max_events,
        subscription.batch_max_wait,
        leaving,
    )
    processor = Processor(subscription.handlers)
    lanes = Lanes(subscription.lanes, processor, DeadLetterWriter(subscription.group), leaving)
    with Heart(consumer, processor.worker_id, processor.slowest).beating():
        _run(consumer, lanes, leaving, metrics_at)


def run_dead_letter_store(metrics_at: MetricsAddress | None) -> None:
    """Store dead letters in PostgreSQL until SIGTERM or SIGINT, then leave cleanly."""
    unresolved = DeadLetterCount()
    metrics.export_dlq_size(unresolved.latest)
    leaving = Leaving()
    consumer = EventConsumer(
        kafka.DEAD_LETTER_EVENTS,
        kafka.dlq_group(),
        batch_max_events=100,
        batch_max_wait=0.005,
        leaving=leaving,
    )
    # What cannot be stored here waits: there is no dead letter of a dead letter, so its burial is
    # never asked for.
    lanes = Lanes(1, DeadLetterStore(), DeadLetterWriter(consumer.group), leaving)
    with Heart(consumer).beating(), unresolved.counting():
        _run(consumer, lanes, leaving, metrics_at)


def _run(
    consumer: EventConsumer, lanes: Lanes, leaving: Leaving, metrics_at: MetricsAddress | None
) -> None:
    monitor = Monitor(consumer)
    if metrics_at is not None:
        _serve(metrics_at, monitor)
    tracing.start(f"feed-{consumer.group}")
    leaving.watch(LEAVE_SECONDS)
    with monitor.watching(), _leave_on_signals(leaving):
        try:
            consumer.run(lanes)
        except DeadLetterFlood as flood:
            log.critical("worker_stopped", reason=str(flood))
            sys.exit(EXIT_FLOOD)
        except WorkerHangs as hanging:
            log.critical("worker_stopped", reason=str(hanging))
            sys.exit(EXIT_STUCK)
        finally:
            producer.close()
            node_lease.release()


def _serve(address: MetricsAddress, monitor: Monitor) -> None:
    try:
        metrics_server.serve(address, {"/healthz": monitor.healthz, "/readyz": monitor.readyz})
    except OSError as error:
        sys.exit(
            f"error: the metrics port {address.port} cannot be had: {error}. "
            "Choose another with --metrics-port."
        )


@contextmanager
def _leave_on_signals(leaving: Leaving) -> Iterator[None]:
    """Leave on the first SIGTERM or SIGINT; end the process on the second."""

    signalled = False

    # It does not log: the signal may have come in the middle of a line, and then another one raises
    # or hangs.
    def leave(signal_number: int, _frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            os._exit(EXIT_SECOND_SIGNAL)
        signalled = True
        leaving.begin(signal.Signals(signal_number).name)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
