"""Values of Redis kept in this process, for as long as Redis has not said that they changed.

A round trip to Redis costs more than the rest of a cached read. So all reads of a process go through one connection, on
which Redis announces every change to a key that was read on it (RESP3 client tracking). Announcements and answers come
in order on that connection, so whoever has read all that has arrived knows what changed; a value is used only then, and
only while an answer on the connection is not older than a moment.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis import Connection, ConnectionPool

KEPT_VALUES = 5_000  # of some kilobytes each
HEARD_WITHIN_SECONDS = 1.0


class NearCache:
    """Reads keys of one Redis, whose `pool` sets up connections by `redis_connect_func`; safe for threads.

    Values that begin with `passing` are not kept: they change within moments. Raises `RedisError`.
    """

    def __init__(self, pool: ConnectionPool, passing: bytes) -> None:
        self._passing = passing
        kwargs = pool.connection_kwargs
        self._set_up: Callable[[Connection], None] = kwargs["redis_connect_func"]
        self._connection: Connection = pool.connection_class(
            **kwargs | {"protocol": 3, "redis_connect_func": self._on_connect}
        )
        self._values: dict[bytes, bytes] = {}
        self._heard_at = 0.0
        self._caught_up_at = 0.0
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""
        asked_at = time.monotonic()
        with self._lock:
            try:
                return self._get(keys, asked_at)
            except redis.ConnectionError:
                # The server may be back already; the connection is made anew.
                return self._get(keys, asked_at)

    def _get(self, keys: Sequence[bytes], asked_at: float) -> list[bytes | None]:
        try:
            # Whoever had the lock meanwhile may have looked for announcements after this was asked.
            if self._caught_up_at <= asked_at:
                self._catch_up()
            values = [self._values.get(key) for key in keys]
            missing = [key for key, value in zip(keys, values, strict=True) if value is None]
            if not missing:
                return values
            found = dict(zip(missing, self._ask("MGET", *missing), strict=True))
        except BaseException:
            # An answer that comes later would be taken for that of the next command.
            self._connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        self._keep(found)
        return [found[key] if value is None else value for key, value in zip(keys, values, strict=True)]

    def _catch_up(self) -> None:
        """Forget whatever Redis has announced to be changed."""
        began_at = time.monotonic()
        if began_at - self._heard_at > HEARD_WITHIN_SECONDS:
            self._ask("PING")
        while self._connection.can_read(0):
            self._connection.read_response(push_request=True)
        self._caught_up_at = began_at

    def _ask(self, *command: Any) -> Any:
        asked_at = time.monotonic()
        self._connection.send_command(*command)  # type: ignore[no-untyped-call]
        answer = self._connection.read_response()
        self._heard_at = asked_at
        return answer

    def _keep(self, found: dict[bytes, bytes | None]) -> None:
        self._values |= {
            key: value for key, value in found.items() if value is not None and not value.startswith(self._passing)
        }
        while len(self._values) > KEPT_VALUES:
            del self._values[next(iter(self._values))]

    def _on_connect(self, connection: Connection) -> None:
        # Also called when redis-py mends a broken connection: what was announced meanwhile is lost.
        self._values.clear()
        self._set_up(connection)
        connection._parser.set_invalidation_push_handler(self._on_change)
        connection.send_command("CLIENT", "TRACKING", "ON")  # type: ignore[no-untyped-call]
        connection.read_response()

    def _on_change(self, message: list[Any]) -> None:
        keys = message[1]
        if keys is None:  # the whole database was emptied
            self._values.clear()
        for key in keys or ():
            self._values.pop(key, None)
