"""Counting the requests that the loop answers itself, in the metrics in which Django's are counted.

With several processes each step of a counter is a write to a shared file, which for a cached read
would cost as much as the read. So steps are added up here, and the sums written a few times a
second.
"""

import asyncio
from bisect import bisect_left
from collections import defaultdict
from functools import cache
from typing import Any

from django_prometheus.middleware import Metrics

from eventbus import metrics

FLUSH_SECONDS = 0.25


class Tally:
    """Counts on one loop; `start` has the sums written until `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._cache_results: dict[str, int] = defaultdict(int)
        self._closed = False
        self._due = 0.0

    def start(self) -> None:
        self._due = self._loop.time() + FLUSH_SECONDS
        self._loop.call_later(FLUSH_SECONDS, self._flush_and_go_on)

    def close(self) -> None:
        self._closed = True
        self.flush()

    def count(self, method: str, view: str, status: int, seconds: float) -> None:
        """Count an answer of the view of this name."""
        self._requests[method, view, status] += 1
        self._seconds[method, view].append(seconds)

    def count_cache(self, result: str) -> None:
        """Count a first page that was found."""
        self._cache_results[result] += 1

    def flush(self) -> None:
        """Write the sums."""
        requests, self._requests = self._requests, defaultdict(int)
        seconds, self._seconds = self._seconds, defaultdict(list)
        results, self._cache_results = self._cache_results, defaultdict(int)
        for (method, view, status), number in requests.items():
            for counter in _counters(method, view, str(status)):
                counter.inc(number)
        for (method, view), taken in seconds.items():
            _observe_all(_latency(method, view), taken)
        for result, number in results.items():
            metrics.feed_cache_requests_total.labels(result).inc(number)

    def _flush_and_go_on(self) -> None:
        metrics.api_loop_delay_seconds.observe(max(0.0, self._loop.time() - self._due))
        self.flush()
        if not self._closed:
            self.start()


def _observe_all(histogram: Any, values: list[float]) -> None:
    # As `observe` does for one value, but with one step for each bucket.
    steps: dict[int, int] = defaultdict(int)
    for value in values:
        steps[bisect_left(histogram._upper_bounds, value)] += 1
    for bucket, number in steps.items():
        histogram._buckets[bucket].inc(number)
    histogram._sum.inc(sum(values))


@cache
def _counters(method: str, view: str, status: str) -> tuple[Any, ...]:
    names = Metrics.get_instance()
    return (
        names.requests_by_method.labels(method=method),
        names.responses_by_status.labels(status=status),
        names.responses_by_status_view_method.labels(status=status, view=view, method=method),
    )


@cache
def _latency(method: str, view: str) -> Any:
    return Metrics.get_instance().requests_latency_by_view_method.labels(view=view, method=method)
