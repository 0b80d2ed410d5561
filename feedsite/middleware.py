"""Middleware that costs the API nothing it does not need.

Sessions, messages and static files belong to the pages for people (admin, API docs). An API request
skips them: together with fewer request metrics this halves what Django spends on a cached read (see
docs/benchmarks.md).
"""

from collections.abc import Callable
from functools import lru_cache
from secrets import token_hex
from typing import Any

import structlog
from axes.middleware import AxesMiddleware
from corsheaders.middleware import CorsMiddleware
from django.conf import settings
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import MiddlewareNotUsed, SuspiciousOperation
from django.db import DataError
from django.http import HttpRequest, HttpResponseBase
from django.middleware.common import CommonMiddleware
from django.urls import get_script_prefix, set_script_prefix
from django.utils.deprecation import MiddlewareMixin
from django_prometheus.middleware import PrometheusAfterMiddleware
from django_prometheus.utils import Time, TimeSince
from whitenoise.middleware import WhiteNoiseMiddleware

from eventbus import cell_pages, cells
from eventbus.cells import Cell
from eventbus.telemetry import correlation, tracing
from feedsite import errors, whose

log = structlog.get_logger(__name__)

MAX_KEY_DIGITS = 18
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
# Swagger UI writes styles into its page.
DOCS_POLICY = f"{POLICY}; style-src 'self' 'unsafe-inline'"

# Of the pages about a cell, whose prefix `CellOfRequest` has taken away, those of no cell are left.
PAGES = ("/admin/", "/docs/", "/schema/", "/static/", "/cells/")


class RequestIds:
    """Gives each request an id for log, event and answer: that of its `X-Request-ID`, or a new
    one.
    """

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


class CellOfRequest:
    """Has a request ask the servers of the cell that it is about; in `MIDDLEWARE` only where there
    is a map of cells.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        cell = cell_pages.cell_in(request.path_info)
        if cell is not None:
            return self._page_about(cell, request)
        authorization = request.META.get("HTTP_AUTHORIZATION", "")
        with cells.on(whose.cell_of(request.path_info, authorization)):
            return self.get_response(request)

    def _page_about(self, cell: Cell, request: HttpRequest) -> HttpResponseBase:
        prefix = cell_pages.prefix_of(cell)
        request.path_info = request.path_info.removeprefix(prefix)
        before = get_script_prefix()
        # All addresses that the page makes begin with it then, and lead to the same cell.
        set_script_prefix(f"{prefix}/")
        try:
            with cells.on(cell):
                return self.get_response(request)
        finally:
            set_script_prefix(before)


class CrossOrigin(CorsMiddleware):
    """Lets pages of `CORS_ALLOWED_ORIGINS` use the API; not in use without any."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        if not settings.CORS_ALLOWED_ORIGINS:
            raise MiddlewareNotUsed
        super().__init__(get_response)


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


class PagePolicy(PagesOnly, MiddlewareMixin):
    """Gives pages a content security policy: what an attacker gets into one is not run, and tells
    nobody.
    """

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        is_docs = request.path_info.startswith("/docs/")
        response["Content-Security-Policy"] = DOCS_POLICY if is_docs else POLICY
        return response


class PageInput(PagesOnly, MiddlewareMixin):
    """Refuses what no page of ours sends and PostgreSQL or the admin would stumble over."""

    def process_request(self, request: HttpRequest) -> None:
        """Raise `SuspiciousOperation`, which is answered with 400."""
        sent = [request.path_info, *request.COOKIES.values()]
        for values in (*request.GET.lists(), *request.POST.lists()):
            sent += [values[0], *values[1]]
        if any("\0" in text for text in sent):
            raise SuspiciousOperation("There is a NUL in the request.")
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if not all(_is_key(text) for text in selected):
            raise SuspiciousOperation("A selected row is none.")

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponseBase | None:
        """Answer 400 to a value that PostgreSQL refuses, such as a regular expression that is
        none.
        """
        if not isinstance(exception, DataError):
            return None
        log.warning("page_refused", error=str(exception).partition("\n")[0])
        return errors.bad_request(request, exception)


def _is_key(text: str) -> bool:
    """Tell whether `text` can be the key of a row with actions: every one of these is a number."""
    return text.isascii() and text.isdecimal() and len(text) <= MAX_KEY_DIGITS


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
    """django-prometheus with the four metrics people chart; all of its twenty cost a sixth of a
    cached read.
    """

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
