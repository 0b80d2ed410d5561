"""Requests for Django, answered by its WSGI handler on threads.

The threads are divided by what they wait for, so that a server that stands still holds those alone
that need it. Each division has a bounded queue, and a request that has waited in it for too long is
refused without being begun.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from typing import Any, TypeVar

from django import db
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler

from eventbus import cells, metrics
from eventbus.cells import Cell
from eventbus.database.deadline import answer_within
from feedsite import whose
from feedsite.front.http import Answer, HeaderList, Request
from feedsite.front.limits import ADMIN, LOCAL, OVER_ALL, READS, WRITES, thread_counts
from feedsite.front.spool import FileAnswer, Pieces, Spool

WAITING_A_THREAD = 32
WAITING_SECONDS = 5.0
# People at the admin may select thousands of dead letters at once.
ADMIN_ANSWER_SECONDS = 30.0

API_PATHS = ("/posts", "/feeds", "/users", "/follows", "/mutes", "/blocks", "/events")
ADMIN_PATHS = ("/admin", "/cells/")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
IDEMPOTENCY_KEY = "idempotency-key"

T = TypeVar("T")


class Overloaded(Exception):
    """More requests of this kind are under way than this process can take."""


class DjangoThreads:
    """The threads for requests of one kind."""

    def __init__(self, kind: str, threads: int, answer_seconds: float) -> None:
        self.kind = kind
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"django-{kind}")
        self._most = threads * (1 + WAITING_A_THREAD)
        self._count = threads
        self._answer_seconds = answer_seconds
        self._under_way = 0

    async def call(self, act: Callable[..., T], *values: Any) -> T:
        """Return what `act` does on one of the threads. Raises `Overloaded`, and what it raises."""
        if self._under_way >= self._most:
            raise Overloaded
        self._under_way += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads, self._serve, act, values, time.monotonic()
            )
        finally:
            self._under_way -= 1

    def _serve(self, act: Callable[..., T], values: Sequence[Any], asked_at: float) -> T:
        if time.monotonic() - asked_at > WAITING_SECONDS:
            raise Overloaded
        with answer_within(self._answer_seconds):
            return act(*values)

    def export(self) -> None:
        """Set the gauges of these threads."""
        busy = min(self._under_way, self._count)
        metrics.api_threads_busy.labels(self.kind).set(busy)
        metrics.api_requests_waiting.labels(self.kind).set(self._under_way - busy)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class CellThreads:
    """The threads for requests that wait for the servers of one cell."""

    def __init__(self, cell: Cell, counts: Mapping[str, int]) -> None:
        seconds = settings.DATABASE_ANSWER_SECONDS
        self.reads = DjangoThreads(cell.named(READS), counts[READS], seconds)
        self.writes = DjangoThreads(cell.named(WRITES), counts[WRITES], seconds)


class Bridge:
    """Hands requests over to Django."""

    def __init__(self, handler: WSGIHandler) -> None:
        self._handler = handler
        counts = thread_counts(settings.BLOCKING_THREADS)
        seconds = settings.DATABASE_ANSWER_SECONDS
        self._of_cells = {name: CellThreads(cell, counts) for name, cell in cells.every().items()}
        # Where there is but one cell nobody asks for these threads, and none is begun.
        self._over_all = DjangoThreads(OVER_ALL, counts[OVER_ALL], seconds)
        self._admin = DjangoThreads(ADMIN, counts[ADMIN], ADMIN_ANSWER_SECONDS)
        self._local = DjangoThreads(LOCAL, counts[LOCAL], seconds)
        self._spool = Spool()

    async def answer(self, request: Request) -> Answer | FileAnswer:
        """Return Django's answer. Raises `BodyRefused` and `Overloaded`."""
        environ = _environ(request, await request.body())
        threads = self._threads_for(request)
        answer = await threads.call(_call, self._handler, environ)
        if isinstance(answer, Pieces):
            return await self._spool.answer(answer, threads)
        return answer

    def _threads_for(self, request: Request) -> DjangoThreads:
        if request.path.startswith(ADMIN_PATHS):
            return self._admin
        if not request.path.startswith(API_PATHS):
            return self._local
        if whose.is_over_all_cells(request.path):
            return self._over_all
        cell = whose.cell_of(request.path, request.headers.get("authorization") or "")
        threads = self._of_cells[cell.name]
        return threads.reads if request.method in SAFE_METHODS else threads.writes

    @property
    def _all(self) -> Iterable[DjangoThreads]:
        of_cells = [(threads.reads, threads.writes) for threads in self._of_cells.values()]
        shared = [self._admin, self._local]
        if not whose.is_alone():
            shared.append(self._over_all)
        return *chain(*of_cells), *shared

    def export(self) -> None:
        """Set the gauges of all threads."""
        for threads in self._all:
            threads.export()

    def close(self) -> None:
        for threads in (*self._all, self._over_all):
            threads.close()


def _call(handler: WSGIHandler, environ: dict[str, Any]) -> Answer | Pieces:
    """Call a WSGI application (PEP 3333) and return all it has to say, or what will make it."""
    head: list[Any] = []

    def start_response(status: str, headers: HeaderList, _exc_info: object = None) -> Any:
        head[:] = [status, headers]

    response = handler(environ, start_response)
    is_streaming = getattr(response, "streaming", False)
    if is_streaming and environ["REQUEST_METHOD"] != "HEAD":
        db.close_old_connections()
        return Pieces(*_head(head), _pieces_of(response))
    try:
        body = b"" if is_streaming else b"".join(response)
    finally:
        if hasattr(response, "close"):
            response.close()
    return Answer(*_head(head), body)


def _head(head: Sequence[Any]) -> tuple[int, HeaderList]:
    status, headers = head
    return int(status.partition(" ")[0]), [(name.lower(), value) for name, value in headers]


def _pieces_of(response: Any) -> Generator[bytes]:
    """Yield what the application makes; it ends with that, or when this is closed."""
    try:
        yield from response
    finally:
        response.close()


def _environ(request: Request, body: bytes) -> dict[str, Any]:
    """Return the request as WSGI describes it (PEP 3333)."""
    scope = request.scope
    server_name, _, server_port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": server_name,
        "SERVER_PORT": server_port,
        "SERVER_PROTOCOL": "HTTP/1.0"
        if scope.http_version == "1"
        else f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }
    for name, value in request.headers.items():
        _add_header(environ, name, value)
    if IDEMPOTENCY_KEY in request.headers and request.headers.get(IDEMPOTENCY_KEY) is None:
        # Granian tells nothing of one that is not ASCII. Passed over, the write could happen twice.
        _add_header(environ, IDEMPOTENCY_KEY, "")
    # Of a body in chunks the length is known by now.
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    if body:
        environ["CONTENT_LENGTH"] = str(len(body))
    return environ


def _add_header(environ: dict[str, Any], name: str, value: str) -> None:
    if "_" in name:
        return  # WSGI could not tell X_Forwarded_Proto from X-Forwarded-Proto, which a proxy has checked
    key = name.upper().replace("-", "_")
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = f"HTTP_{key}"
    if key in environ:
        separator = "; " if key == "HTTP_COOKIE" else ","
        value = f"{environ[key]}{separator}{value}"
    environ[key] = value
