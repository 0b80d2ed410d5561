"""A long-running worker process: signals, the metrics port and the loop of one subscription."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
from prometheus_client import start_http_server

from eventbus import node_lease, producer
from eventbus.consumer import EventConsumer
from eventbus.dead_letters import DeadLetterWriter
from eventbus.exceptions import DeadLetterFlood
from eventbus.processing import Processor
from eventbus.subscription import Subscription

EXIT_SECOND_SIGNAL = 130
EXIT_FLOOD = 3
EXIT_STUCK = 4
LEAVE_SECONDS = 30.0

log = structlog.get_logger(__name__)


def run(subscription: Subscription, metrics_port: int | None) -> None:
    """Consume `subscription` until SIGTERM or SIGINT, then leave cleanly.

    Exits with 3 on a flood of dead letters; a second signal leaves at once with 130.
    """
    if metrics_port is not None:
        start_http_server(metrics_port)
    consumer = EventConsumer(
        subscription.topic, subscription.group, subscription.batch_max_events, subscription.batch_max_wait
    )
    dead_letters = DeadLetterWriter(subscription.group)
    processor = Processor(subscription, dead_letters.write, consumer.wait, consumer.still_ours)
    with _stop_on_signals(consumer):
        try:
            consumer.run(processor.process)
        except DeadLetterFlood as flood:
            log.critical("worker_stopped", reason=str(flood))
            sys.exit(EXIT_FLOOD)
        finally:
            producer.close()
            node_lease.release()


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
