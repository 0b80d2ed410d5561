"""Middleware that costs the API nothing it does not need.

Sessions, messages and static files belong to the pages for people (admin, API docs). An API request skips
them: together with the cached metric labels this halves what Django spends on a cached read (see docs/benchmarks.md).
"""

from functools import lru_cache
from typing import Any

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponseBase
from django.middleware.common import CommonMiddleware
from django_prometheus.middleware import PrometheusAfterMiddleware, PrometheusBeforeMiddleware
from whitenoise.middleware import WhiteNoiseMiddleware

PAGES = ("/admin/", "/docs/", "/schema/", "/static/")


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


@lru_cache(maxsize=10_000)
def _labelled(metric: Any, labels: tuple[tuple[str, str], ...]) -> Any:
    return metric.labels(**dict(labels))


class CachedLabels:
    """Mixin: looks each combination of metric labels up once instead of at every request."""

    def label_metric(self, metric: Any, request: HttpRequest, response: Any = None, **labels: str) -> Any:
        return _labelled(metric, tuple(labels.items())) if labels else metric


class PrometheusBefore(CachedLabels, PrometheusBeforeMiddleware):  # type: ignore[misc]
    pass


class PrometheusAfter(CachedLabels, PrometheusAfterMiddleware):  # type: ignore[misc]
    pass
