"""What ties together the log lines of one event, on both sides of Kafka: its id, the request's id
and the trace's id.

The request brings them in HTTP headers, the record carries them in Kafka headers, and each side
binds them to its log.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars

from eventbus import dead_letter_headers
from eventbus.record import Delivery, Headers, Record

REQUEST_ID = "request_id"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

NAMED_EVENTS = 20  # of a batch; one log line need not hold them all

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_REQUEST_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")

LogFields = dict[str, str]

log = structlog.get_logger(__name__)


def is_request_id(text: str) -> bool:
    """Tell whether `text` may stand in logs and headers as a request's id."""
    return _REQUEST_ID.fullmatch(text) is not None


def trace_id(traceparent: str) -> str | None:
    """Return the trace id in a W3C `traceparent`, None if it is not a valid one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else None


def kafka_headers(request_id: str, traceparent: str, tracestate: str) -> list[tuple[str, bytes]]:
    """Return the Kafka headers that carry on what a request brought in its HTTP headers, as far as
    valid.
    """
    headers = []
    if is_request_id(request_id):
        headers.append((REQUEST_ID, request_id.encode()))
    if traceparent and trace_id(traceparent):
        headers.append((TRACEPARENT, traceparent.encode()))
        if _TRACESTATE.fullmatch(tracestate):
            headers.append((TRACESTATE, tracestate.encode()))
    return headers


def ids_of(headers: Headers) -> LogFields:
    """Return what a record's headers tell: request, trace and, of a dead letter, event; anyone may
    have written it.
    """
    ids: LogFields = {}
    for name, value in headers:
        text = (value or b"")[:100].decode("ascii", "replace")
        if name == REQUEST_ID and is_request_id(text):
            ids["request_id"] = text
        elif name == TRACEPARENT and (found := trace_id(text)):
            ids["trace_id"] = found
        elif name == dead_letter_headers.EVENT_ID and text.isdecimal():
            ids["event_id"] = text
    return ids


def bind_request(meta: Mapping[str, str]) -> None:
    """Have the log lines from here on name the request with these WSGI variables, and nothing from
    before.
    """
    clear_contextvars()
    bind_contextvars(request_id=meta["HTTP_X_REQUEST_ID"])
    if found := trace_id(meta.get("HTTP_TRACEPARENT", "")):
        bind_contextvars(trace_id=found)


def bind_headers(headers: Headers, event_id: int) -> None:
    """Have the log lines from here on name this event, and what these Kafka headers tell of its
    request.
    """
    _bind([{**ids_of(headers), "event_id": str(event_id)}])


def bind_event(event_id: int) -> None:
    """Have the log lines from here on name this event too."""
    bind_contextvars(event_id=str(event_id))


def bind_events(event_ids: Sequence[int]) -> None:
    """Have the log lines from here on name these events too."""
    bind_contextvars(event_ids=[str(event_id) for event_id in event_ids[:NAMED_EVENTS]])


def bind_deliveries(deliveries: Sequence[Delivery]) -> None:
    """Have the log lines from here on name these events."""
    _bind(map(_ids, deliveries[:NAMED_EVENTS]))


def bind_failure(record: Record, delivery: Delivery | None) -> None:
    """Have the log lines from here on name the event that failed; of one that could not be decoded,
    its headers.
    """
    _bind([_ids(delivery) if delivery else ids_of(record.headers)])


def bind_records(records: Sequence[Record]) -> None:
    """Have the log lines from here on name what these records' headers tell."""
    _bind(ids_of(record.headers) for record in records[:NAMED_EVENTS])


def forget() -> None:
    """Have the log lines from here on name no event."""
    clear_contextvars()


def note_processed(deliveries: Sequence[Delivery]) -> None:
    """Log each of `deliveries`, at the level DEBUG alone: it would be a line for every event."""
    if log.is_enabled_for(logging.DEBUG):
        for delivery in deliveries:
            log.debug("event_processed", type=delivery.event.type, **_ids(delivery))


def _ids(delivery: Delivery) -> LogFields:
    return {**ids_of(delivery.record.headers), "event_id": str(delivery.event.event_id)}


def _bind(found: Iterable[LogFields]) -> None:
    clear_contextvars()
    events = list(found)
    if len(events) == 1:
        bind_contextvars(**events[0])
    else:
        for name in ("event_id", "request_id", "trace_id"):
            if values := [ids[name] for ids in events if name in ids]:
                bind_contextvars(**{f"{name}s": values})
