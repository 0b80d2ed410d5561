"""Latency of reading feeds: over HTTP, one request at a time, and of the queries alone."""

import http.client
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import tables
from feeds.read import here
from feeds.timeline import Reader
from feedsite.authentication import issue_token
from posts.pagination import DEFAULT_LIMIT, START, Position

PATIENCE_SECONDS = 10.0
IDLE_SECONDS = 5.0


class Connection:
    """A connection to the API that is kept, but made anew after a pause: the server closes idle
    ones.
    """

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._used_at = time.monotonic()

    def request(
        self, method: str, path: str, headers: dict[str, str], body: str | None = None
    ) -> tuple[int, bytes]:
        """Return the status and the body of the answer."""
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            self._http.close()
        self._http.request(method, path, body, headers)
        answer = self._http.getresponse()
        answered = answer.status, answer.read()
        self._used_at = time.monotonic()
        return answered


class Client:
    """A client of the API on one connection."""

    def __init__(self, port: int) -> None:
        self._connection = Connection(port)
        self._headers: dict[int, dict[str, str]] = {}

    def get(self, user: int, query: str = "") -> Any:
        """Return the page of the user's own feed."""
        return json.loads(self._get(user, query))

    def cached(self, user: int, query: str = "") -> float:
        """Return the seconds that the page takes."""
        started = time.perf_counter()
        self._get(user, query)
        return time.perf_counter() - started

    def uncached(self, user: int, query: str = "") -> float:
        """Return the seconds that the page takes when no cache has it."""
        here.pages.invalidate([user])
        return self.cached(user, query)

    def wait_for_cache(self, user: int) -> None:
        """Return when the cache is open, which after a bulk load takes some seconds."""
        deadline = time.perf_counter() + PATIENCE_SECONDS
        while not here.pages.look_up(user).replaces:
            if time.perf_counter() > deadline:
                raise RuntimeError("the cache did not open")
            here.pages.invalidate([user])
            time.sleep(0.1)

    def _get(self, user: int, query: str) -> bytes:
        if user not in self._headers:
            self._headers[user] = {"Authorization": f"Bearer {issue_token(user, '', 3600)}"}
        status, body = self._connection.request("GET", f"/feeds/{user}{query}", self._headers[user])
        if status != 200:
            raise RuntimeError(f"not a page: {body!r}")
        return body


def query_of(position: Position) -> str:
    """Return the query string of the page at `position`."""
    return "" if position == START else f"?cursor={position.encode()}"


def query_seconds(user: int, position: Position) -> float:
    """Return the seconds that PostgreSQL and the code around it take for the page, without HTTP,
    cache and JSON.
    """
    started = time.perf_counter()
    Reader(user).read(position, DEFAULT_LIMIT + 1)
    return time.perf_counter() - started


def p50_p95(seconds: Sequence[float]) -> str:
    """Return both in milliseconds."""
    return " / ".join(f"{tables.percentile(seconds, percent) * 1000:.1f}" for percent in (50, 95))


def repeat(read: Callable[[int], float], users: Iterable[int], times: int) -> list[float]:
    """Return the seconds of `read` for each user in turn, `times` over, after one round that does
    not count.
    """
    users = list(users)
    for user in users:
        read(user)
    return [read(user) for _ in range(times) for user in users]
