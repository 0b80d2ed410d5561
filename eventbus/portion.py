"""How much is done at once: as much as there is, until that has been too much."""

import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

import structlog

from eventbus import metrics

# A larger portion is tried when so many of the present size have gone well: a try that fails costs
# two time-outs, which is little beside what went well before it.
GROW_AFTER = 20

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Portion:
    """Remembers what was too much for PostgreSQL at once, so that the next batch does not find that
    out again.

    Lanes share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._most: int | None = None  # None: nothing has been too much lately
        self._too_much = 0  # the largest that has failed since there is a limit
        self._gone_well = 0  # events, since the limit was last changed

    def fits(self, count: int) -> bool:
        """Tell whether so many are worth a try."""
        most = self._most
        return most is None or count <= most

    def cut(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Cut `items`, in order, by what is known whenever the next portion is asked for."""
        begin = 0
        while begin < len(items):
            end = begin + (self._most or len(items))
            yield items[begin:end]
            begin = end

    def was_too_much(self, count: int) -> None:
        """Have half of `count` be the most from now on."""
        half = max(1, count // 2)
        with self._lock:
            self._too_much = max(self._too_much, count)
            self._gone_well = 0
            if self._most is not None and self._most <= half:
                return
            self._most = half
            metrics.transaction_events_limit.set(half)
            log.warning("transactions_limited", events=half)

    def went_well(self, count: int) -> None:
        """Note that so many were done at once; after enough of them twice as many are tried."""
        with self._lock:
            if self._most is None:
                return
            self._gone_well += count
            if self._gone_well >= GROW_AFTER * self._most:
                self._gone_well = 0
                self._grow(2 * self._most)

    def _grow(self, most: int) -> None:
        if most < self._too_much:
            self._most = most
            metrics.transaction_events_limit.set(most)
            log.info("transactions_limited", events=most)
            return
        self._most = None
        self._too_much = 0
        metrics.transaction_events_limit.set(0)
        log.info("transactions_not_limited")
