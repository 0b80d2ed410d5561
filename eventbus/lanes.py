"""Lanes: the threads of one worker that process a batch side by side.

A batch is split by key, so that the events of a key stay in order, in one lane. To PostgreSQL, and so to everything
that guards a feed, a lane is what another worker is: a connection, transactions and key locks of its own. While
PostgreSQL writes the rows of one lane, another decodes events or makes cached pages void.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from contextvars import copy_context
from typing import Any

from django.db import connection

from eventbus.exceptions import WorkerStopping
from eventbus.subscription import Record

# A smaller batch is one transaction faster than it is two.
EVENTS_WORTH_A_LANE = 25
# After that the consumer is looked after: it must be polled long before Kafka gives its partitions away.
PATIENCE_SECONDS = 1.0

KeepAlive = Callable[[Callable[[float], bool]], None]


class Lanes:
    """`count` threads. `keep_alive(busy)` must keep the consumer alive for as long as `busy(seconds)` says so, which
    takes at most so many seconds to say it, and raise `WorkerStopping` when it is time to leave.
    """

    def __init__(self, count: int, keep_alive: KeepAlive) -> None:
        self._count = count
        self._keep_alive = keep_alive
        self._threads = futures.ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._leaving = threading.Event()

    def wait(self, seconds: float) -> None:
        """Wait in a lane. Raises `WorkerStopping` at once when the worker leaves, or another lane has failed."""
        if self._leaving.wait(seconds):
            raise WorkerStopping

    def process(self, records: Sequence[Record], process: Callable[[Sequence[Record]], None]) -> None:
        """Have `process` called with each lane's share of `records`; return when all lanes are done.

        Raises what a lane has raised, after all have ended; no more batches can be processed then.
        """
        # In a copy of the context, what is bound to the log or the trace of the batch holds in each lane too.
        lanes = [
            self._threads.submit(copy_context().run, self._process, process, share)
            for share in split(records, self._lanes_for(len(records)))
        ]
        try:
            if _busy(lanes, PATIENCE_SECONDS):
                self._keep_alive(lambda seconds: _busy(lanes, seconds))
        except WorkerStopping:
            # The lanes finish what they are at; those that have to wait for another attempt leave it.
            self._leaving.set()
        except BaseException:
            self._leaving.set()
            futures.wait(lanes)
            raise
        _raise_failure(lanes)

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


def _busy(lanes: Sequence[futures.Future[Any]], seconds: float) -> bool:
    return bool(futures.wait(lanes, seconds).not_done)


def _raise_failure(lanes: Iterable[futures.Future[Any]]) -> None:
    """Wait for all lanes; raise what one of them has raised, rather its own failure than that it had to leave."""
    failures = [failure for lane in lanes if (failure := lane.exception())]
    if failures:
        raise min(failures, key=lambda failure: isinstance(failure, WorkerStopping))
