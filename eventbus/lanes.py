"""Lanes: the threads of one worker that process a batch side by side.

A batch is split by key, so that the events of a key stay in order, in one lane. To PostgreSQL, and so to everything
that guards a feed, a lane is what another worker is: a connection, transactions and key locks of its own. While
PostgreSQL writes the rows of one lane, another decodes events or makes cached pages void.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from contextvars import copy_context
from functools import partial
from typing import Any

from django.db import connection

from eventbus.exceptions import WorkerStopping
from eventbus.subscription import Record

# A smaller batch is one transaction faster than it is two.
EVENTS_WORTH_A_LANE = 25
# So often the consumer is looked after while lanes wait.
KEEP_ALIVE_SECONDS = 0.2

KeepAlive = Callable[[Callable[[float], bool]], None]


class Lanes:
    """`count` threads, and the consumer they work for.

    `keep_alive(busy)` must keep the consumer alive until `busy(seconds)`, which takes so long to answer, is False, and
    raise `WorkerStopping` when it is time to leave. While lanes neither end nor wait `busy` does not answer at all, so
    Kafka gives the partitions of a worker that hangs to others.
    """

    def __init__(self, count: int, keep_alive: KeepAlive) -> None:
        self._count = count
        self._keep_alive = keep_alive
        self._threads = futures.ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._leaving = threading.Event()
        self._some_wait = threading.Event()

    def wait(self, seconds: float) -> None:
        """Wait in a lane. Raises `WorkerStopping` at once when the worker leaves, or another lane has failed."""
        deadline = time.monotonic() + seconds
        while True:
            self._some_wait.set()
            left = deadline - time.monotonic()
            if self._leaving.wait(max(0.0, min(left, KEEP_ALIVE_SECONDS))):
                raise WorkerStopping
            if left <= KEEP_ALIVE_SECONDS:
                return

    def process(self, records: Sequence[Record], process: Callable[[Sequence[Record]], None]) -> None:
        """Have `process` called with each lane's share of `records`; return when all lanes are done.

        Raises what a lane has raised, after all have ended; no more batches can be processed then.
        """
        self._some_wait.clear()
        # In a copy of the context, what is bound to the log or the trace of the batch holds in each lane too.
        lanes = [
            self._threads.submit(copy_context().run, self._process, process, share)
            for share in split(records, self._lanes_for(len(records)))
        ]
        try:
            if self._busy(lanes, KEEP_ALIVE_SECONDS):
                self._keep_alive(partial(self._busy, lanes))
        except WorkerStopping:
            # The lanes finish what they are at; those that have to wait for another attempt leave it.
            self._leaving.set()
        except BaseException:
            self._leaving.set()
            futures.wait(lanes)
            raise
        _raise_failure(lanes)

    def _busy(self, lanes: Sequence[futures.Future[Any]], seconds: float) -> bool:
        """Tell whether a lane waits, or all are done: whichever is true first, after `seconds` at least."""
        while futures.wait(lanes, seconds).not_done:
            if self._some_wait.is_set():
                self._some_wait.clear()
                return True
        return False

    def _lanes_for(self, events: int) -> int:
        return max(1, min(self._count, events // EVENTS_WORTH_A_LANE))

    def _process(self, process: Callable[[Sequence[Record]], None], records: Sequence[Record]) -> None:
        try:
            process(records)
        except BaseException:
            self._leaving.set()
            raise
        finally:
            connection.close()


def until_done(busy: Callable[[float], bool]) -> None:
    """Serve as `keep_alive` where there is no consumer of a group."""
    while busy(KEEP_ALIVE_SECONDS):
        pass


def split(records: Iterable[Record], count: int) -> list[list[Record]]:
    """Return at most `count` shares of `records`, about equally long; those of a key are in one, in order."""
    shares: list[list[Record]] = [[] for _ in range(count)]
    share_of: dict[bytes | None, list[Record]] = {}
    for record in records:
        share = share_of.get(record.key)
        if share is None:
            share = share_of[record.key] = min(shares, key=len)
        share.append(record)
    return [share for share in shares if share]


def _raise_failure(lanes: Iterable[futures.Future[Any]]) -> None:
    """Wait for all lanes; raise what one of them has raised, rather its own failure than that it had to leave."""
    failures = [failure for lane in lanes if (failure := lane.exception())]
    if failures:
        raise min(failures, key=lambda failure: isinstance(failure, WorkerStopping))
