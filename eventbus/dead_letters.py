"""Dead letters: an event that cannot be processed, kept whole in `dead-letter-events` with the reason in its headers.

The record keeps its key, its value bytes and its own headers. The context goes into headers named `dlq.*`, which
replace any of an earlier round, so a record that fails, is replayed and fails again does not grow. Only `dlq.entry`
stays: a replay carries it, so that another failure, or success, finds its entry.
"""

import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import structlog
from django.conf import settings

from eventbus import kafka, metrics, producer, retry
from eventbus.exceptions import DeadLetterFlood
from eventbus.models import DeadLetter
from eventbus.subscription import Delivery, Record

PREFIX = "dlq."
ENTRY = PREFIX + "entry"
MAX_STACK_TRACE_CHARS = 8_000
MAX_MESSAGE_CHARS = 1_000

log = structlog.get_logger(__name__)


class DeadLetterWriter:
    """Writes dead letters for one consumer group and stops the worker when they become a flood."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._recent: deque[float] = deque(maxlen=settings.DLQ_FLOOD_COUNT)

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
        full = len(self._recent) == self._recent.maxlen
        if full and time.monotonic() - self._recent[0] < settings.DLQ_FLOOD_SECONDS:
            raise DeadLetterFlood(
                f"{len(self._recent)} events became dead letters within {settings.DLQ_FLOOD_SECONDS} s, the last by "
                f"{retry.reason(error)}. Stopped before the topic drains into the dead letters: "
                "fix the cause (see `manage.py dlq list`), then start the worker again."
            )


def _own_headers(record: Record) -> Iterator[tuple[str, bytes | None]]:
    for name, value in record.headers:
        if not name.startswith(PREFIX) or name == ENTRY:
            yield name, value


def entry_of(record: Record) -> int | None:
    """Return the id of the entry that `record` is a replay of, if it is one."""
    for name, value in record.headers:
        if name == ENTRY and value and value.isdigit() and len(value) <= 18:
            return int(value)
    return None


def close_replayed(records: Iterable[Record]) -> None:
    """Resolve the entries that `records` replay; call it in the transaction that processes them."""
    entries = [entry for record in records if (entry := entry_of(record)) is not None]
    if entries:
        DeadLetter.objects.close_replayed(entries)


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
