"""Requests as granian hands them over (RSGI), and what may be wrong with their bodies."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol

from django.conf import settings
from granian._granian import RSGIProtocolClosed as ProtocolClosed

# Of a body that is too large, so much is read and thrown away, that its sender gets to read the
# answer.
DROPPED_BYTES = 16 * 1024 * 1024

LOOK_EVERY_SECONDS = 0.5

HeaderList = list[tuple[str, str]]


class Answer(NamedTuple):
    """Status, headers and body of a response; granian adds Content-Length and Date."""

    status: int
    headers: HeaderList
    body: bytes


class RequestHeaders(Protocol):
    """The headers of a request, by their names in lower case."""

    def __contains__(self, name: str) -> bool: ...

    def get(self, name: str, default: str | None = None) -> str | None: ...

    def get_all(self, name: str) -> list[str]: ...

    def items(self) -> list[tuple[str, str]]: ...


class Scope(Protocol):
    """The head of a request. `path` is decoded, `query_string` is not."""

    http_version: str
    server: str
    client: str
    scheme: str
    method: str
    path: str
    query_string: str
    headers: RequestHeaders


class Connection(Protocol):
    """Where the body of a request comes from and its answer goes to."""

    async def __call__(self) -> bytes: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def response_empty(self, status: int, headers: HeaderList) -> None: ...

    def response_stream(self, status: int, headers: HeaderList) -> Any: ...

    def response_file(self, status: int, headers: HeaderList, file: str) -> None: ...

    def response_bytes(self, status: int, headers: HeaderList, body: bytes) -> None: ...


class BodyRefused(Exception):
    """The body cannot be read to its end; the connection has to be closed, for what follows on it
    is unknown.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


class BodyClock:
    """Ends the reading of bodies that do not come to their end, by a look twice a second at all
    that are being read.

    A timer for each would cost a new post as much as all that is done with its body.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._begun: dict[asyncio.Task[Any], float] = {}
        self._ended: set[asyncio.Task[Any]] = set()
        self._look()

    def begin(self, task: asyncio.Task[Any]) -> None:
        self._begun[task] = self._loop.time()

    def end(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether the reading in this task was ended here."""
        self._begun.pop(task, None)
        if task not in self._ended:
            return False
        self._ended.discard(task)
        task.uncancel()
        return True

    def _look(self) -> None:
        overdue_since = self._loop.time() - settings.HTTP_BODY_SECONDS
        overdue = [task for task, begun_at in self._begun.items() if begun_at < overdue_since]
        for task in overdue:
            del self._begun[task]
            self._ended.add(task)
            task.cancel()
        self._loop.call_later(LOOK_EVERY_SECONDS, self._look)


class Request:
    """One request; its body is read once, when someone asks for it."""

    __slots__ = ("_body", "_clock", "_connection", "headers", "method", "path", "scope")

    def __init__(self, scope: Scope, connection: Connection, clock: BodyClock) -> None:
        self._clock = clock
        self.scope = scope
        self.method = scope.method
        self.path = scope.path
        self.headers = scope.headers
        self._connection = connection
        self._body: bytes | None = None

    def header(self, name: str) -> str:
        """Return a header that is given once; empty where it is not, or several times, of which
        others may take another one.
        """
        given = self.headers.get_all(name)
        return given[0] if len(given) == 1 else ""

    @property
    def has_body(self) -> bool:
        """Whether a body follows, which has to be read before the connection can be used again."""
        headers = self.headers
        return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

    async def body(self) -> bytes:
        """Return the whole body, however it is framed.

        Raises `BodyRefused`: 413 for more than `DATA_UPLOAD_MAX_MEMORY_SIZE` bytes, 408 for one
        that has not come to its end after `HTTP_BODY_SECONDS`, 400 for one that ends too early.
        """
        if self._body is None:
            self._body = await self._read()
        return self._body

    async def _read(self) -> bytes:
        is_chunked = "transfer-encoding" in self.headers
        length = int(self.headers.get("content-length") or 0)
        if not is_chunked and length == 0:
            return b""
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - granian runs each request in one
        body = LimitedBody(limit)
        self._clock.begin(task)
        try:
            if not is_chunked and length <= limit:
                return await self._connection()
            return await body.read(self._connection)
        except ProtocolClosed:
            raise _incomplete() from None
        except asyncio.CancelledError:
            if not self._clock.end(task):
                raise
            if body.size > limit:
                raise _too_large(limit) from None
            raise BodyRefused(
                408, "request_timeout", "The request did not come to its end in time."
            ) from None
        finally:
            self._clock.end(task)


class LimitedBody:
    """Reads a body piece by piece, and keeps no more of it than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self.size = 0

    async def read(self, connection: Connection) -> bytes:
        """Return the body. Raises `BodyRefused`."""
        empty_pieces = 0
        async for piece in connection:
            self.size += len(piece)
            empty_pieces += not piece
            if self.size > self._limit + DROPPED_BYTES:
                break
            if self.size <= self._limit:
                self._pieces.append(piece)
        if self.size > self._limit:
            raise _too_large(self._limit)
        # Granian ends a body with one empty piece, and puts another before it where the body broke
        # off. (Also where trailers came, which nobody sends and nothing here reads.)
        if empty_pieces > 1:
            raise _incomplete()
        return b"".join(self._pieces)


def _incomplete() -> BodyRefused:
    return BodyRefused(400, "incomplete_body", "The body ended before its end.")


def _too_large(limit: int) -> BodyRefused:
    return BodyRefused(413, "payload_too_large", f"The request body is larger than {limit} bytes.")
