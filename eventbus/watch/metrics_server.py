"""The HTTP port of a worker: `/metrics`, `/healthz` and `/readyz`, answered by threads beside the
loop.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from eventbus.arguments import MetricsAddress
from eventbus.watch.health import Health

Pages = Mapping[str, Callable[[], Health]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that says nothing must not keep its thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        pass


def serve(address: MetricsAddress, pages: Pages) -> None:
    """Answer at `address` from now on, in the background.

    Raises `OSError` when the port cannot be had.
    """
    metrics_app = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = metrics_app(environ, start_response)
            return answer
        found = pages[path]() if path in pages else None
        status = (
            "404 Not Found"
            if found is None
            else "200 OK"
            if found.good
            else "503 Service Unavailable"
        )
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [(found.text if found else f"not here; try /metrics, {', '.join(pages)}\n").encode()]

    server = make_server(
        address.host, address.port, app, server_class=_Server, handler_class=_Handler
    )
    threading.Thread(target=server.serve_forever, name="metrics-server", daemon=True).start()
