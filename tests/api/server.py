"""The API on a port of this process, so that a test can change its settings, with the front on or
off.
"""

import asyncio
import threading
from contextlib import suppress

import httpx
import uvloop
from django.core.handlers.wsgi import WSGIHandler
from granian.constants import HTTPModes
from granian.http import HTTP1Settings
from granian.server.embed import Server

from eventbus import cells
from feeds.read import here
from feedsite.authentication import issue_token
from feedsite.embedded.processes import free_port
from feedsite.front.application import Application
from feedsite.front.live import CellStreams
from tests.api import contract

HEADER_SECONDS = 2
BUFFER_BYTES = 65_536  # as in bin/serve


def _hears(of_cell: CellStreams) -> bool:
    with cells.on(of_cell._cell):
        era = here.trust.now()
    return era is not None and of_cell.is_hearing and of_cell._hearing._subscribed_to == era.name


class ApiServer:
    """Serves the API from its own thread and event loop, with the HTTP settings of `bin/serve`,
    until `stop`.
    """

    def __init__(self, *, is_hot: bool, wait_for: str = "/readyz") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._application = Application(WSGIHandler(), is_hot=is_hot)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"api-{self.port}", daemon=True)
        self._thread.start()
        self._http = httpx.Client(base_url=self.url, timeout=60)
        self._wait(wait_for)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._server = Server(
            self._application,
            port=self.port,
            http=HTTPModes.http1,
            websockets=False,
            log_enabled=False,
            backlog=4_096,
            http1_settings=HTTP1Settings(
                header_read_timeout=HEADER_SECONDS * 1_000, max_buffer_size=BUFFER_BYTES
            ),
        )
        await self._server.serve()

    def _wait(self, probe: str) -> None:
        for _ in range(600):
            with suppress(httpx.TransportError):
                if self._http.get(probe).status_code == 200:
                    return
            threading.Event().wait(0.05)
        raise AssertionError("The API did not start.")

    def stop(self) -> None:
        self._http.close()
        self._server.stop()  # type: ignore[no-untyped-call]
        self._thread.join(20)

    @property
    def is_hearing(self) -> bool:
        """Tell whether live streams hear what is announced in the era that counts now."""
        return all(_hears(of_cell) for of_cell in self._application._live._cells.values())

    @property
    def open_streams(self) -> int:
        """Return how many live streams are open now, of which the gauge tells now and then."""
        return self._application._live._open

    @property
    def awaits_counts(self) -> bool:
        """Tell whether a live stream has not heard yet what its feed has."""
        of_cells = self._application._live._cells.values()
        return any(stream.asked_at for of_cell in of_cells for stream in of_cell.streams())

    def client(self, user: int = 1, scope: str = "") -> "ApiClient":
        """Return a client with a token of this user."""
        return ApiClient(self._http, {"Authorization": f"Bearer {issue_token(user, scope, 60)}"})

    def anonymous(self, **headers: str) -> "ApiClient":
        return ApiClient(self._http, headers)


class ApiClient:
    """Requests with the headers of one client; what is not documented fails the test."""

    def __init__(self, http: httpx.Client, headers: dict[str, str]) -> None:
        self._http = http
        self._headers = headers

    def request(
        self, method: str, path: str, headers: dict[str, str], content: bytes | None = None
    ) -> httpx.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._http.request(method, path, content=content, headers=self._headers | given)
        contract.check(answer)
        return answer

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.request("GET", path, headers)

    def head(self, path: str) -> httpx.Response:
        return self.request("HEAD", path, {})

    def post(
        self, path: str, body: bytes = b"", content_type: str = "application/json", **headers: str
    ) -> httpx.Response:
        return self.request("POST", path, {"Content-Type": content_type, **headers}, body)

    def patch(self, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        return self.request("PATCH", path, {"Content-Type": "application/json", **headers}, body)

    def put(self, path: str, **headers: str) -> httpx.Response:
        return self.request("PUT", path, headers)

    def delete(self, path: str, **headers: str) -> httpx.Response:
        return self.request("DELETE", path, headers)


class Current:
    """The API that a test talks to."""

    api: ApiServer
