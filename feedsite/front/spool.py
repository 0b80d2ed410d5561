"""Answers whose body is made piece by piece, such as exports.

Granian takes whatever it is given to stream into memory, however slowly the client reads. So the
pieces go into a file first, which granian then reads at the pace of the client. Each piece is made
by a thread for itself, between requests of others; the file has no name, so nothing is left of it
when the process dies.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import structlog
from django import db
from django.db import Error as DatabaseFailure

from feedsite.api import error_answer
from feedsite.front.hot import refusal
from feedsite.front.http import Answer, HeaderList

AT_ONCE = 2  # answers that a process makes side by side
# By then granian has opened the file, and reads on when it is closed here.
KEPT_SECONDS = 60.0
RETRY_LATER = ("retry-after", "5")

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Threads(Protocol):
    """Where the pieces are made."""

    async def call(self, act: Callable[..., T], *values: Any) -> T: ...


class Pieces(NamedTuple):
    """How an answer begins, and what makes its body."""

    status: int
    headers: HeaderList
    body: Generator[bytes]


class FileAnswer(NamedTuple):
    """An answer whose body is in a file."""

    status: int
    headers: HeaderList
    path: str


class Spool:
    """The answers that are made in pieces, of one process."""

    def __init__(self) -> None:
        self._under_way = 0

    async def answer(self, pieces: Pieces, threads: Threads) -> Answer | FileAnswer:
        """Return the answer once its body is complete, or why there is none."""
        if self._under_way >= AT_ONCE:
            await threads.call(pieces.body.close)
            return _try_later("too_many_exports", "Others are being exported here now. Try again.")
        self._under_way += 1
        try:
            async with _file() as file:
                return await _spooled(pieces, threads, file)
        except DatabaseFailure as error:
            refused = error_answer(error)
            headers = [(name.lower(), value) for name, value in refused.items()]
            return Answer(refused.status_code, headers, refused.content)
        except OSError as error:
            log.error("no_room_for_answer", error=str(error))
            return _try_later(
                "no_room", "There is no room for so much here: manage.py export_user."
            )
        finally:
            self._under_way -= 1
            await threads.call(pieces.body.close)


async def _spooled(pieces: Pieces, threads: Threads, file: IO[bytes]) -> FileAnswer:
    size = 0
    while written := await threads.call(_write_next, pieces.body, file):
        size += written
    file.flush()
    headers = [*pieces.headers, ("content-length", str(size))]
    return FileAnswer(pieces.status, headers, f"/dev/fd/{file.fileno()}")


def _write_next(body: Generator[bytes], file: IO[bytes]) -> int:
    """Write the next piece; return its size, 0 after the last."""
    try:
        piece = next((piece for piece in body if piece), b"")
    finally:
        # The next one may be made by another thread.
        db.close_old_connections()
    file.write(piece)
    return len(piece)


@asynccontextmanager
async def _file() -> AsyncIterator[IO[bytes]]:
    """Give a file without a name, closed at once if the context fails and else after a while."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it outlives this context
    try:
        yield file
    except BaseException:
        file.close()
        raise
    file.seek(0)
    asyncio.get_running_loop().call_later(KEPT_SECONDS, file.close)


def _try_later(code: str, detail: str) -> Answer:
    return refusal(503, code, detail, RETRY_LATER)
