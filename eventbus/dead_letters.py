"""Dead letters: an event that cannot be processed, kept whole in `dead-letter-events` with the reason in its headers.

The record keeps its key, its value bytes and its own headers. The context goes into headers named `dlq.*`, which
replace any of an earlier round, so a record that fails, is replayed and fails again does not grow.
"""

import time
import traceback
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime

import structlog

from eventbus import kafka, metrics, producer, retry
from eventbus.exceptions import DeadLetterFlood
from eventbus.subscription import Delivery, Record

PREFIX = "dlq."
MAX_STACK_TRACE_CHARS = 8_000
MAX_MESSAGE_CHARS = 1_000

FLOOD_COUNT = 500
FLOOD_SECONDS = 60.0

log = structlog.get_logger(__name__)


class DeadLetterWriter:
    """Writes dead letters for one consumer group and stops the worker when they become a flood."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._recent: deque[float] = deque(maxlen=FLOOD_COUNT)

    def write(self, record: Record, error: BaseException, delivery: Delivery | None) -> None:
        """Return once the dead letter is durable in Kafka.

        Raises `PublishFailed` (try again; the source offset must not be committed) and `DeadLetterFlood`.
        """
        self._refuse_flood(error)
        headers = [*_own_headers(record), *_context(record, error, delivery, self._group)]
        producer.publish_record(kafka.DEAD_LETTER_EVENTS, record.key, record.value, headers)
        self._recent.append(time.monotonic())
        metrics.dlq_messages_total.labels(retry.reason(error)).inc()
        log.error(
            "dead_letter",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            event_id=delivery.event.event_id if delivery else None,
            error=retry.reason(error),
        )

    def _refuse_flood(self, error: BaseException) -> None:
        full = len(self._recent) == FLOOD_COUNT
        if full and time.monotonic() - self._recent[0] < FLOOD_SECONDS:
            raise DeadLetterFlood(
                f"{FLOOD_COUNT} events became dead letters within {FLOOD_SECONDS:.0f} s, the last by "
                f"{retry.reason(error)}. Stopped before the topic drains into the dead letters: "
                "fix the cause (see `manage.py dlq list`), then start the worker again."
            )


def _own_headers(record: Record) -> Iterator[tuple[str, bytes]]:
    for name, value in record.headers:
        if not name.startswith(PREFIX):
            yield name, value or b""


def _context(
    record: Record, error: BaseException, delivery: Delivery | None, group: str
) -> Iterator[tuple[str, bytes]]:
    now = datetime.now(UTC)
    first_failed_at = (delivery.first_failed_at if delivery else None) or now
    stack = "".join(traceback.format_exception(error))[-MAX_STACK_TRACE_CHARS:]
    context = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "group": group,
        "exception": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": str(error)[:MAX_MESSAGE_CHARS],
        "stack_trace": stack,
        "attempts": delivery.attempts if delivery else 0,
        "first_failed_at": first_failed_at.isoformat(timespec="milliseconds"),
        "event_id": delivery.event.event_id if delivery else "",
        "event_type": delivery.event.type if delivery else "",
    }
    for name, value in context.items():
        yield PREFIX + name, str(value).encode("utf-8", "replace")
