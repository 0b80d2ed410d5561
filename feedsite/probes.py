"""Liveness and readiness of the API."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from eventbus.watch import health
from eventbus.watch.health import Health
from feedsite.api import method_not_allowed

PROBING = ("GET", "HEAD")


@csrf_exempt
def healthz(request: HttpRequest) -> HttpResponse:
    """Answer that the process lives; asks nobody else."""
    if request.method not in PROBING:
        return method_not_allowed(str(request.method), *PROBING)
    return _answer(health.ALIVE)


@csrf_exempt
def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 when PostgreSQL and Kafka can be used, else 503, with a line a dependency."""
    if request.method not in PROBING:
        return method_not_allowed(str(request.method), *PROBING)
    return _answer(health.dependencies())


def _answer(found: Health) -> HttpResponse:
    return HttpResponse(found.text, content_type="text/plain", status=found.status)
