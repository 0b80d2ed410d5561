"""A connection to Redis for an event loop, which never waits for it.

Commands go out at once and answers are told from each other by their order, so any number of
callers share the connection and its round trips. A thread makes the connection, and makes it anew
when it is lost; until then every command fails at once. So does every command from when one has had
no answer for `ANSWER_SECONDS` until Redis answers again: it may only have stumbled. A connection on
which nothing was heard for `SILENT_SECONDS` counts as lost.
"""

import asyncio
import socket
import ssl
import threading
import time
from collections import deque
from typing import Any, Protocol

import hiredis
import structlog
from redis import Connection, ConnectionPool, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from eventbus.breaker import Breaker

ANSWER_SECONDS = 0.25
SILENT_SECONDS = 1.0
TICK_SECONDS = 0.05
HEARTBEAT_SECONDS = 0.25
RECONNECT_SECONDS = 0.25
READ_BYTES = 256 * 1024

log = structlog.get_logger(__name__)


class Listener(Protocol):
    """What is told of the connection: on the loop, except for `prepare`."""

    def prepare(self, connection: Connection) -> None:
        """Set a new connection up; called in the thread that makes it. May raise `RedisError`."""

    def connected(self) -> None:
        """Hear that there is a new connection."""

    def lost(self, error: Exception) -> None:
        """Hear that there is none any more; `Silent` when Redis has gone silent on it."""

    def announced(self, message: list[Any]) -> None:
        """Hear what Redis says unasked (RESP3 push data)."""


class Silent(RedisConnectionError):
    """Redis has not answered for a while."""


class LoopRedis:
    """Commands to one Redis from one event loop; all methods are for that loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: ConnectionPool,
        breaker: Breaker,
        listener: Listener,
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._breaker = breaker
        self._listener = listener
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._asked: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._unsent = b""
        self._caught_up = False
        self._is_stalled = False
        self.heard_at = 0.0  # monotonic seconds; whatever changed before was announced here
        self._wanted = threading.Event()
        self._closed = False

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._wanted.set()
        threading.Thread(
            target=self._keep_connecting, name="redis-for-the-loop", daemon=True
        ).start()
        self._tick()

    def close(self) -> None:
        self._closed = True
        self._wanted.set()
        self._lose(RedisConnectionError("closed"))

    def reconnect(self, reason: str) -> None:
        """Give the connection up, which leads to the wrong server, and have a new one made."""
        self._lose(RedisConnectionError(reason))

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def ask(self, *command: str | int | float | bytes | memoryview) -> "asyncio.Future[Any]":
        """Send a command and return the future of its answer, or of a `RedisError`."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._socket is None:
            answer.set_exception(RedisConnectionError("There is no connection to Redis."))
            return answer
        if self._is_stalled:
            answer.set_exception(Silent("Redis does not answer now."))
            return answer
        self._asked.append((self._loop.time(), answer))
        self._send(hiredis.pack_command(command))  # type: ignore[arg-type]
        return answer

    def catch_up(self) -> None:
        """Take note of all that has arrived, at most once in each turn of the loop.

        Every request of this turn had arrived before it began: what Redis had announced by then is
        known afterwards.
        """
        if not self._caught_up:
            self._caught_up = True
            self._loop.call_soon(self._begin_turn)
            self._read()

    def _begin_turn(self) -> None:
        self._caught_up = False

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            while data := self._socket.recv(READ_BYTES):
                self._reader.feed(data)
                if len(data) < READ_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                    break
            else:
                raise RedisConnectionError("Redis has closed the connection.")
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except (OSError, RedisError) as error:
            self._lose(error)
            return
        self._take_answers()

    def _take_answers(self) -> None:
        try:
            while (answer := self._reader.gets()) is not _INCOMPLETE:
                if isinstance(answer, hiredis.PushNotification):
                    self._listener.announced(answer)
                else:
                    self._settle(answer)
        except (hiredis.ProtocolError, IndexError) as error:
            self._lose(error)

    def _settle(self, answer: Any) -> None:
        self.heard_at, future = self._asked.popleft()
        self._is_stalled = False
        if future.done():
            return
        if isinstance(answer, hiredis.ReplyError):
            future.set_exception(ResponseError(str(answer)))
        else:
            future.set_result(answer)

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            sent = 0
        except OSError as error:
            self._lose(error)
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self._socket.fileno(), self._send_rest)

    def _send_rest(self) -> None:
        if self._socket is None:
            return
        data, self._unsent = self._unsent, b""
        self._loop.remove_writer(self._socket.fileno())
        self._send(data)

    def _tick(self) -> None:
        """Notice a server that does not answer, and hear from one that nobody asks."""
        if self._closed:
            return
        if self._is_overdue():
            # It may have come while the loop itself was busy.
            self._read()
        if self._is_overdue():
            self._stall()
        elif self._socket is not None and not self._asked and self._quiet() > HEARTBEAT_SECONDS:
            self.ask("PING").add_done_callback(_retrieve)
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _is_overdue(self) -> bool:
        return bool(self._asked) and self._loop.time() - self._asked[0][0] > ANSWER_SECONDS

    def _quiet(self) -> float:
        """Return for how many seconds nothing was heard."""
        return self._loop.time() - self.heard_at

    def _stall(self) -> None:
        """Have nobody wait for a Redis that does not answer; give the connection up in the end."""
        if self._quiet() > SILENT_SECONDS:
            self._lose(Silent("Redis did not answer in time."))
            return
        self._is_stalled = True
        # They stay in line: answers are told from each other by their order.
        for _asked_at, answer in self._asked:
            if not answer.done():
                answer.set_exception(Silent("Redis did not answer in time."))

    def _lose(self, error: Exception) -> None:
        if self._socket is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        connection, self._connection, self._socket = self._connection, None, None
        asked, self._asked = self._asked, deque()
        self._unsent = b""
        self._is_stalled = False
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]
        self._listener.lost(error)
        for _asked_at, answer in asked:
            if not answer.done():
                answer.set_exception(RedisConnectionError(str(error)))
        if not self._closed:
            self._breaker.failed(error)
        self._wanted.set()

    def _adopt(self, connection: Connection) -> None:
        if self._closed:
            connection.disconnect()  # type: ignore[no-untyped-call]
            return
        connected: socket.socket = connection._sock  # type: ignore[assignment]
        connected.setblocking(False)
        self._connection, self._socket = connection, connected
        self.heard_at = self._loop.time()
        self._loop.add_reader(connected.fileno(), self._read)
        self._breaker.succeeded()
        self._listener.connected()

    def _keep_connecting(self) -> None:
        while self._wanted.wait() and not self._closed:
            self._wanted.clear()
            try:
                connection = self._pool.connection_class(
                    **self._pool.connection_kwargs | {"protocol": 3}
                )
                connection.connect()
                self._listener.prepare(connection)
                self._loop.call_soon_threadsafe(self._adopt, connection)
            except (RedisError, OSError) as error:
                self._breaker.failed(error)
                log.debug("redis_not_connected", error=str(error))
                time.sleep(RECONNECT_SECONDS)
                self._wanted.set()
            except RuntimeError:
                return  # the loop is closed


_INCOMPLETE = object()


def _retrieve(answer: "asyncio.Future[Any]") -> None:
    """Take note of an answer that nobody waits for."""
    answer.exception()
