"""The spans of an event: the request, the publication, the processing.

Imported only while tracing is on.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventbus import kafka
from eventbus.event import Event
from eventbus.record import Headers, Record
from eventbus.telemetry.correlation import TRACEPARENT, TRACESTATE

EXPORTERS = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}

_w3c = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("feed-backend")


def start(service: str, exporter: str) -> None:
    """Send spans to `exporter`; OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, …)
    say where and how.
    """
    named = "OTEL_SERVICE_NAME" in os.environ
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(EXPORTERS[exporter]()))
    trace.set_tracer_provider(provider)


@contextmanager
def serving(meta: Mapping[str, str]) -> Iterator[Span]:
    """Be within the span of a request, in the trace that its headers name or in a new one."""
    carrier = {
        TRACEPARENT: meta.get("HTTP_TRACEPARENT", ""),
        TRACESTATE: meta.get("HTTP_TRACESTATE", ""),
    }
    method = meta["REQUEST_METHOD"]
    with _tracer.start_as_current_span(
        method,
        context=_w3c.extract(carrier),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": method},
    ) as span:
        yield span


def context_of(span: Span) -> dict[str, str]:
    """Return the WSGI variables that name `span` as the parent of what follows."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, trace.set_span_in_context(span))
    return {f"HTTP_{name.upper()}": value for name, value in carrier.items()}


def note_answer(span: Span, method: str, route: str | None, status: int) -> None:
    """Say in the span of a request how it was answered."""
    span.set_attribute("http.response.status_code", status)
    if route is not None:
        span.update_name(f"{method} /{route}")
        span.set_attribute("http.route", f"/{route}")
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


@contextmanager
def publishing(event: Event, headers: Headers) -> Iterator[Headers]:
    """Be within the span of a publication; yield the headers that hand its context on."""
    attributes = _messaging("publish", kafka.FEED_EVENTS) | {
        "messaging.message.id": str(event.event_id),
        "feed.event.type": event.type,
    }
    with _tracer.start_as_current_span(
        f"publish {kafka.FEED_EVENTS}", kind=SpanKind.PRODUCER, attributes=attributes
    ):
        yield _with_context(headers)


@contextmanager
def processing(records: Sequence[Record], group: str) -> Iterator[None]:
    """Be within the span of a batch, and have one for each of its records in the trace that brought
    it.
    """
    topic = records[0].topic
    spans = [_record_span(record, group) for record in records]
    links = [Link(span.get_span_context()) for span in spans]
    attributes = _messaging("process", topic) | {
        "messaging.batch.message_count": len(records),
        "messaging.consumer.group.name": group,
    }
    try:
        with _tracer.start_as_current_span(
            f"process batch of {topic}", links=links, attributes=attributes
        ):
            yield
    except BaseException as error:
        for span in spans:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        for span in spans:
            span.end()


def _record_span(record: Record, group: str) -> Span:
    names = {TRACEPARENT, TRACESTATE}
    carrier = {
        name: value.decode("ascii", "replace")
        for name, value in record.headers
        if name in names and value
    }
    attributes = _messaging("process", record.topic) | {
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
        "messaging.consumer.group.name": group,
    }
    return _tracer.start_span(
        f"process {record.topic}",
        context=_w3c.extract(carrier),
        kind=SpanKind.CONSUMER,
        attributes=attributes,
    )


def _with_context(headers: Headers) -> Headers:
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    kept = [(name, value) for name, value in headers if name not in (TRACEPARENT, TRACESTATE)]
    return [*kept, *((name, value.encode()) for name, value in carrier.items())]


def _messaging(operation: str, topic: str) -> dict[str, Any]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }
