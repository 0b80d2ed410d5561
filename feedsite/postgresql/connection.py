"""Connections to PostgreSQL for threads that cannot wait for a server that stands still.

Without a deadline a query on such a server waits for as long as that lasts: the connection is
alive, so no time-out of TCP's ends it, and the server's own `statement_timeout` stands still with
it.
"""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import ReadOnlySqlTransaction

from eventbus.breaker import Breaker
from eventbus.database.deadline import AnswerTooLate, answer_by

T = TypeVar("T")

LOOK_EVERY_SECONDS = 0.1  # psycopg's own


class _Failure(NamedTuple):
    at: float  # monotonic seconds
    reason: str


_NEVER = _Failure(-math.inf, "")
_last_failures: dict[tuple[object, ...], _Failure] = {}


def failure_since(moment: float, address: Mapping[str, Any]) -> str:
    """Return in one line why connecting to that server failed last, if it did after that moment
    (monotonic seconds).
    """
    failure = _last_failures.get(_place_of(address), _NEVER)
    if failure.at < moment:
        return ""
    return failure.reason.strip().partition("\n")[0]


def _place_of(address: Mapping[str, Any]) -> tuple[object, ...]:
    return address.get("host"), address.get("port"), address.get("dbname")


class Connection(psycopg.Connection[Any]):
    """A connection that waits no longer than its thread may, and is given up when it is of no more
    use.
    """

    _expire_at: float  # monotonic seconds; the pool's
    breaker: Breaker | None = None  # of the server; the pool does not know it

    @classmethod
    def connect(cls, *args: Any, **options: Any) -> Self:
        """Do as psycopg's method does, and keep why it failed: the pool, which calls it, does not
        tell.
        """
        try:
            return super().connect(*args, **options)
        except psycopg.OperationalError as error:
            _last_failures[_place_of(options)] = _Failure(time.monotonic(), str(error))
            raise

    def wait(
        self, gen: PQGen[T], interval: float = LOOK_EVERY_SECONDS, timeout: float | None = None
    ) -> T:
        """Do as psycopg's method does, which all queries go through."""
        until = answer_by()
        if until is not None:
            seconds_left = max(0.0, until - time.monotonic())
            timeout = seconds_left if timeout is None else min(timeout, seconds_left)
        try:
            return super().wait(gen, interval, timeout)
        except ReadOnlySqlTransaction:
            # The server became a standby. The pool takes no connection back that is past its time,
            # so the next one is made to the new primary.
            self._expire_at = 0.0
            raise
        except psycopg.OperationalError as error:
            if until is not None and time.monotonic() >= until:
                # The answer may still come, and would be taken for that to the next question.
                self.close()
                if self.breaker is not None:
                    self.breaker.failed("no answer in time")
                raise AnswerTooLate("PostgreSQL did not answer in time.") from error
            raise
