"""Liveness and readiness of the API."""

from django.http import HttpRequest, HttpResponse
from django_prometheus.exports import ExportToDjangoView

from eventbus.watch import health
from eventbus.watch.health import Health
from feedsite.api import only_reading


@only_reading
def healthz(_request: HttpRequest) -> HttpResponse:
    """Answer that the process lives; asks nobody else."""
    return _answer(health.ALIVE)


@only_reading
def readyz(_request: HttpRequest) -> HttpResponse:
    """Answer 200 when Kafka and PostgreSQL, of one cell at least, can be used, else 503, with a line
    a dependency.
    """
    return _answer(health.dependencies())


@only_reading
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with what Prometheus scrapes."""
    answer: HttpResponse = ExportToDjangoView(request)
    return answer


def _answer(found: Health) -> HttpResponse:
    return HttpResponse(found.text, content_type="text/plain", status=found.status)
