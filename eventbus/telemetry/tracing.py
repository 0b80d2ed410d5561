"""OpenTelemetry, off unless `OTEL_TRACES_EXPORTER` says otherwise: then nothing of it is imported
or paid for.

`eventbus.telemetry.spans` makes the spans. A request's trace context goes through Kafka either way,
see `correlation`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from eventbus.event import Event
from eventbus.record import Headers, Record

_spans: Any = None  # eventbus.telemetry.spans, once started


def start(service: str) -> None:
    """Export spans of this process from now on, if that is wanted; call it in each process, after
    any fork.

    Raises `ImproperlyConfigured` where OpenTelemetry is wanted and not installed.
    """
    global _spans
    if settings.OTEL_TRACES_EXPORTER == "none":
        return
    try:
        spans = import_module("eventbus.telemetry.spans")
    except ModuleNotFoundError as error:
        raise ImproperlyConfigured(
            f"OTEL_TRACES_EXPORTER is set, but {error.name} is not installed: pip install '.[tracing]', or unset it."
        ) from error
    spans.start(service, settings.OTEL_TRACES_EXPORTER)
    _spans = spans


def serving(meta: Mapping[str, str]) -> AbstractContextManager[Any]:
    """Return the span of a request with these WSGI variables, as a context manager; only while
    tracing.
    """
    span: AbstractContextManager[Any] = _spans.serving(meta)
    return span


def context_of(span: Any) -> dict[str, str]:
    """Return the WSGI variables that name `span` as the parent of what follows."""
    variables: dict[str, str] = _spans.context_of(span)
    return variables


def note_answer(span: Any, method: str, route: str | None, status: int) -> None:
    """Say in the span of a request how it was answered."""
    _spans.note_answer(span, method, route, status)


def publishing(event: Event, headers: Headers) -> AbstractContextManager[Headers]:
    """Return, as a context manager, the headers to publish `event` with."""
    return nullcontext(headers) if _spans is None else _spans.publishing(event, headers)


def processing(records: Sequence[Record], group: str) -> AbstractContextManager[None]:
    """Return, as a context manager, a span for each record, in the trace its headers name; only
    while tracing.
    """
    if _spans is None:
        return nullcontext()
    spans: AbstractContextManager[None] = _spans.processing(records, group)
    return spans
