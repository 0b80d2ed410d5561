"""What a dead letter is: an event that cannot be processed, kept whole, with the reason in its headers.

The record keeps its key, its value bytes and its own headers. The context goes into headers named `dlq.*`, which
replace any of an earlier round, so a record that fails, is replayed and fails again does not grow. Only `dlq.entry`
stays: a replay carries it, so that another failure, or success, finds its entry.
"""

import time
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime

from eventbus import kafka
from eventbus.models import DeadLetter
from eventbus.subscription import Delivery, Headers, Record

PREFIX = "dlq."
ENTRY = PREFIX + "entry"
MAX_STACK_TRACE_CHARS = 8_000
MAX_MESSAGE_CHARS = 1_000


def dead_letter(record: Record, error: BaseException, delivery: Delivery | None, group: str) -> Record:
    """Return `record` as a dead letter of `group`, not yet written anywhere."""
    return Record(
        topic=kafka.DEAD_LETTER_EVENTS,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value,
        headers=[*_own_headers(record), *_context(record, error, delivery, group)],
        timestamp_ms=time.time_ns() // 1_000_000,
    )


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


def _own_headers(record: Record) -> Headers:
    return [(name, value) for name, value in record.headers if not name.startswith(PREFIX) or name == ENTRY]


def _context(record: Record, error: BaseException, delivery: Delivery | None, group: str) -> Headers:
    now = datetime.now(UTC)
    first_failed_at = (delivery.first_failed_at if delivery else None) or now
    stack = "".join(traceback.format_exception(error))[-MAX_STACK_TRACE_CHARS:]
    context = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": max(0, record.timestamp_ms),  # anything a producer likes; -1 for none
        "group": group,
        "exception": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": str(error)[:MAX_MESSAGE_CHARS],
        "stack_trace": stack,
        "attempts": delivery.attempts if delivery else 0,
        "first_failed_at": first_failed_at.isoformat(timespec="milliseconds"),
        "event_id": delivery.event.event_id if delivery else "",
        "event_type": delivery.event.type if delivery else "",
    }
    return [(PREFIX + name, str(value).encode("utf-8", "replace")) for name, value in context.items()]
