"""Spans as a real exporter sends them: one trace from the request to the worker; and nothing of it
while it is off.
"""

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.system import System, environment, wait_until
from tests.observability.processes import Worker
from tests.observability.traffic import CURSED, curse

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP, as any tracing backend does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Endpoint)
        self.spans: list[Any] = []
        self.variables = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def span(self, name: str, trace_id: str = TRACE_ID) -> Any:
        """Return the span of that name in the trace, once it is there."""

        def found() -> list[Any]:
            return [
                span for span in self.spans if span.name == name and span.trace_id.hex() == trace_id
            ]

        wait_until(
            found,
            message=lambda: f"no {name} among {[(s.name, s.trace_id.hex()) for s in self.spans]}",
        )
        return found()[0]


class _Endpoint(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        # Not before the fixture has found it installed.
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip(
        "opentelemetry.proto", reason="OpenTelemetry is not installed: pip install '.[tracing]'"
    )
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()


def post(system: System, content: str, **headers: str) -> str:
    with system.client(1) as client:
        answer = client.post("/posts", json={"content": content}, headers=headers)
        event_id: str = answer.raise_for_status().json()["event_id"]
        return event_id


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


def test_one_trace_leads_from_the_request_through_kafka_to_the_worker(
    idle_system: System, collector: Collector
) -> None:
    system = idle_system
    system.api(**collector.variables)
    Worker(system, "run_fanout", **collector.variables)
    event_id = post(
        system, "a post", traceparent=f"00-{TRACE_ID}-{CLIENT_SPAN}-01", tracestate="vendor=1"
    )

    request, publication = collector.span("POST /posts"), collector.span("publish feed-events")
    processing = collector.span("process feed-events")
    assert request.parent_span_id.hex() == CLIENT_SPAN
    assert publication.parent_span_id == request.span_id
    assert processing.parent_span_id == publication.span_id
    assert {request.trace_state, publication.trace_state, processing.trace_state} == {"vendor=1"}
    assert attributes(request)["http.response.status_code"] == 202
    assert attributes(publication)["messaging.message.id"] == event_id
    assert attributes(processing)["messaging.consumer.group.name"] == "fanout"
    wait_until(
        lambda: [
            s for s in collector.spans if [link.span_id for link in s.links] == [processing.span_id]
        ]
    )
    assert not any("a post" in str(span) for span in collector.spans)


def test_a_dead_letter_stays_in_the_trace_of_its_request(
    system: System, collector: Collector
) -> None:
    Worker(system, "run_fanout")
    Worker(system, "run_dlq", **collector.variables)
    with curse():
        post(system, CURSED, traceparent=f"00-{TRACE_ID}-{CLIENT_SPAN}-01")
        assert collector.span("process dead-letter-events").parent_span_id.hex() == CLIENT_SPAN


def test_while_it_is_off_nothing_of_opentelemetry_is_imported() -> None:
    # The Redis client imports what OpenTelemetry has for metrics, where it is installed.
    program = (
        "import sys, feedsite.wsgi, feeds.management.commands.run_fanout; "
        "print({'opentelemetry.sdk.trace', 'opentelemetry.exporter', 'eventbus.telemetry.spans'} & sys.modules.keys())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "set()"


def test_wanted_but_not_installed_is_said_in_one_sentence() -> None:
    program = (
        "import sys, manage; sys.modules['opentelemetry'] = None; "
        "sys.argv = ['manage.py', 'run_dlq']; manage.main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | {"OTEL_TRACES_EXPORTER": "otlp"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "error: OTEL_TRACES_EXPORTER is set, but opentelemetry is not installed" in run.stderr
