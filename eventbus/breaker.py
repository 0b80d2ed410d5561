"""A circuit breaker for each server that requests wait for, in each cell.

While a server answers, its breaker is closed and costs a look at one attribute. After `FAILURES`
calls in a row that got no answer it is open: callers are refused at once, except for one at a time,
which tries. The first success closes it again. So an outage costs each caller nothing but the first
few time-outs, and ends with the first answer.

The pattern is from M. Nygard, "Release It!" (2007). It is written out here because the libraries
for it open for a fixed time, which would keep a server that has come back away from its clients.
"""

import math
import threading
import time
from typing import NamedTuple

import structlog

from eventbus import metrics
from eventbus.cells import Cell, OfEach
from eventbus.exceptions import ServerAway

FAILURES = 3
NO_TRIAL = 0
# A call that tried and never told how it went, such as one whose thread was lost, keeps the others
# out no longer.
LOST_AFTER_SECONDS = 10.0

log = structlog.get_logger(__name__)


class Breaker:
    """Says whether a call to one server is worth a try; safe for threads, and it never waits."""

    def __init__(self, server: str, failures: int = FAILURES) -> None:
        self.server = server
        self._most_failures = failures
        self._failures = 0
        self._failed_at = -math.inf
        self._trial = NO_TRIAL  # the number of the one that is under way
        self._trials = 0
        self._trying_since = -math.inf
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the server is taken to be away."""
        return self._failures >= self._most_failures

    def failed_within(self, seconds: float) -> bool:
        """Whether the last failure is not longer ago than that."""
        return time.monotonic() - self._failed_at < seconds

    def enter(self) -> int:
        """Let the caller try, who then tells `succeeded`, `failed` or `gave_up`.

        Raises `ServerAway` instead.

        Returns the number of the trial that the call is, to be told with how it went; `NO_TRIAL`
        while the server is not taken to be away.
        """
        if not self.is_open:
            return NO_TRIAL
        with self._lock:
            now = time.monotonic()
            someone_tries = self._trial and now - self._trying_since < LOST_AFTER_SECONDS
            if self.is_open and someone_tries:
                raise ServerAway(self.server)
            self._trials += 1
            self._trial, self._trying_since = self._trials, now
            return self._trial

    def succeeded(self) -> None:
        """Say that the server has answered, with whatever."""
        if self._failures == 0:
            return
        with self._lock:
            was_open = self.is_open
            self._failures, self._trial = 0, NO_TRIAL
        if was_open:
            metrics.breaker_open.labels(self.server).set(0)
            log.info("server_is_back", server=self.server)

    def failed(self, error: object, trial: int = NO_TRIAL) -> None:
        """Say that the server has not answered."""
        with self._lock:
            was_open = self.is_open
            self._failures += 1
            self._failed_at = time.monotonic()
            self._end(trial)
            opened = self.is_open and not was_open
        if opened:
            metrics.breaker_open.labels(self.server).set(1)
            log.error("server_is_away", server=self.server, error=str(error))

    def gave_up(self, trial: int = NO_TRIAL) -> None:
        """Say that the call ended without anything learnt about the server."""
        with self._lock:
            self._end(trial)

    def _end(self, trial: int) -> None:
        # Calls from before the server was taken to be away fail too, while another one tries.
        if trial == self._trial:
            self._trial = NO_TRIAL


class Breakers(NamedTuple):
    """Those of the servers that a cell has for itself."""

    postgresql: Breaker
    redis: Breaker


def _make(cell: Cell) -> Breakers:
    return Breakers(Breaker(cell.named("postgresql")), Breaker(cell.named("redis"), failures=1))


_breakers = OfEach(_make)


def of(cell: Cell) -> Breakers:
    """Return the breakers of a cell: another one that is away keeps nobody from these servers."""
    return _breakers.of(cell)


KAFKA = Breaker("kafka")
