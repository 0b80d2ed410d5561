"""Middleware that costs the API nothing it does not need.

Sessions, messages and static files belong to the pages for people (admin, API docs). An API request skips
them: together with fewer request metrics this halves what Django spends on a cached read (see docs/benchmarks.md).
"""

from collections.abc import Callable
from functools import lru_cache
from secrets import token_hex
from typing import Any

from axes.middleware import AxesMiddleware
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponseBase
from django.middleware.common import CommonMiddleware
from django_prometheus.middleware import PrometheusAfterMiddleware
from django_prometheus.utils import Time, TimeSince
from whitenoise.middleware import WhiteNoiseMiddleware

from eventbus.telemetry import correlation, tracing

PAGES = ("/admin/", "/docs/", "/schema/", "/static/")


class RequestIds:
    """Gives each request an id for log, event and answer: that of its `X-Request-ID`, or a new one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request_id = request.META.get("HTTP_X_REQUEST_ID", "")
        if not correlation.is_request_id(request_id):
            request_id = request.META["HTTP_X_REQUEST_ID"] = token_hex(16)
        correlation.bind_request(request.META)
        response = self.get_response(request)
        response["X-Request-ID"] = request_id
        return response


class RequestSpans:
    """Makes a span of each request; in `MIDDLEWARE` only while tracing is on."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        with tracing.serving(request.META) as span:
            # What follows, the log and the event, belongs to this span.
            request.META.update(tracing.context_of(span))
            response = self.get_response(request)
            route = request.resolver_match.route if request.resolver_match else None
            tracing.note_answer(span, f"{request.method}", route, response.status_code)
        return response


class PagesOnly:
    """Mixin: leaves requests for anything but pages alone."""

    get_response: Any

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info.startswith(PAGES):
            response: HttpResponseBase = super().__call__(request)  # type: ignore[misc]
            return response
        answer: HttpResponseBase = self.get_response(request)
        return answer


class PageWhiteNoise(PagesOnly, WhiteNoiseMiddleware):  # type: ignore[misc]
    pass


class PageSessions(PagesOnly, SessionMiddleware):
    pass


class PageCommon(PagesOnly, CommonMiddleware):
    pass


class PageAuthentication(PagesOnly, AuthenticationMiddleware):
    pass


class PageMessages(PagesOnly, MessageMiddleware):
    pass


class PageLockOut(PagesOnly, AxesMiddleware):  # type: ignore[misc]
    pass


@lru_cache(maxsize=10_000)
def _labelled(metric: Any, labels: tuple[tuple[str, str], ...]) -> Any:
    return metric.labels(**dict(labels))


class RequestMetrics(PrometheusAfterMiddleware):  # type: ignore[misc]
    """django-prometheus with the four metrics people chart; all of its twenty cost a sixth of a cached read."""

    def label_metric(
        self, metric: Any, request: HttpRequest, response: Any = None, **labels: str
    ) -> Any:
        return _labelled(metric, tuple(labels.items())) if labels else metric

    def process_request(self, request: HttpRequest) -> None:
        request.prometheus_after_middleware_event = Time()  # type: ignore[attr-defined]

    def process_view(self, request: HttpRequest, *_args: Any, **_kwargs: Any) -> None:
        return None

    def process_template_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        return response

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        method, view, status = (
            self._method(request),
            self._get_view_name(request),
            str(response.status_code),
        )
        names = self.metrics
        _labelled(names.requests_by_method, (("method", method),)).inc()
        _labelled(names.responses_by_status, (("status", status),)).inc()
        by_view = (("view", view), ("method", method))
        _labelled(names.responses_by_status_view_method, (("status", status), *by_view)).inc()
        started = getattr(request, "prometheus_after_middleware_event", None)
        if started is not None:
            _labelled(names.requests_latency_by_view_method, by_view).observe(TimeSince(started))
        return response
