"""What the running system does at the moment, in one line: from the same metrics that Prometheus
reads.
"""

import math
import time
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from feedsite.demo.ports import Places

TIMEOUT = 1.0  # seconds

Sample = tuple[str, dict[str, str], float]


class Reading(NamedTuple):
    """What the processes that answered have told, by their ports, at one moment."""

    at: float  # monotonic seconds
    told: dict[int, list[Sample]]


def read(places: Places) -> Reading | None:
    """Return what the processes tell now; None while none of them answers."""
    told = {}
    for port in places:
        # One may be down, on purpose or not: the others go on, and so does what is told of them.
        with suppress(OSError, HTTPException):
            told[port] = _scrape(port)
    return Reading(time.monotonic(), told) if told else None


def line(before: Reading, now: Reading) -> str:
    """Describe what happened between two moments, and what is the case at the second."""
    seconds = now.at - before.at
    posts = _growth(before, now, "events_published_total", type="post.created", result="ok")
    rows = _growth(before, now, "fanout_rows_total")
    reads = _growth(before, now, "feed_cache_requests_total")
    hits = _growth(before, now, "feed_cache_requests_total", result="hit")
    share = f"{hits / reads:.0%}" if reads else "–"
    samples = [sample for told in now.told.values() for sample in told]
    return (
        f"{posts / seconds:,.0f} posts/s · {rows / seconds:,.0f} feed rows/s · "
        f"{reads / seconds:,.0f} feed reads/s, {share} from the cache · lag {_lag(samples)} · "
        f"dead letters {_sum(samples, 'dlq_size'):,.0f}"
    )


def _scrape(port: int) -> list[Sample]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT) as answer:
        text = answer.read().decode()
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def _growth(before: Reading, now: Reading, name: str, **labels: str) -> float:
    """Return by how much a counter has grown in the processes that told it both times."""
    grown = 0.0
    for port in before.told.keys() & now.told.keys():
        # One that was started anew counts from 0.
        grown += max(
            0.0, _sum(now.told[port], name, **labels) - _sum(before.told[port], name, **labels)
        )
    return grown


def _sum(samples: Iterable[Sample], name: str, **labels: str) -> float:
    return sum(
        value
        for sample, found, value in samples
        if sample == name and labels.items() <= found.items() and not math.isnan(value)
    )


def _lag(samples: Iterable[Sample]) -> str:
    """Return how many records are not processed yet; each worker tells the lag of every partition,
    so the highest counts.
    """
    lags: dict[tuple[tuple[str, str], ...], float] = {}
    for sample, labels, value in samples:
        if sample == "kafka_consumer_lag" and not math.isnan(value):
            partition = tuple(sorted(labels.items()))
            lags[partition] = max(value, lags.get(partition, 0.0))
    return f"{sum(lags.values()):,.0f}" if lags else "unknown"
