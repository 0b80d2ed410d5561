"""What the running system does at the moment, in one line: from the same metrics that Prometheus
reads.
"""

import math
import time
import urllib.request
from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from feedsite.demo.ports import Places

TIMEOUT = 1.0  # seconds


class Totals(NamedTuple):
    """The counters and gauges of all processes at one moment."""

    at: float  # monotonic seconds
    posts: float
    rows: float
    hits: float
    reads: float
    lag: float
    dead_letters: float


def read(places: Places) -> Totals | None:
    """Return the totals now, or None while a process does not answer."""
    try:
        samples = [sample for port in places for sample in _scrape(port)]
    except OSError:
        return None
    return Totals(
        at=time.monotonic(),
        posts=_sum(samples, "events_published_total", type="post.created", result="ok"),
        rows=_sum(samples, "fanout_rows_total"),
        hits=_sum(samples, "feed_cache_requests_total", result="hit"),
        reads=_sum(samples, "feed_cache_requests_total"),
        lag=_lag(samples),
        dead_letters=_sum(samples, "dlq_size"),
    )


def line(before: Totals, now: Totals) -> str:
    """Describe what happened between two moments."""
    seconds = now.at - before.at
    reads = now.reads - before.reads
    hits = f"{(now.hits - before.hits) / reads:.0%}" if reads > 0 else "–"
    return (
        f"{_rate(now.posts - before.posts, seconds)} posts/s · {_rate(now.rows - before.rows, seconds)} feed rows/s · "
        f"{_rate(reads, seconds)} feed reads/s, {hits} from the cache · lag {now.lag:,.0f} · "
        f"dead letters {now.dead_letters:,.0f}"
    )


Sample = tuple[str, dict[str, str], float]


def _scrape(port: int) -> Iterable[Sample]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        yield from ((sample.name, sample.labels, sample.value) for sample in family.samples)


def _sum(samples: Iterable[Sample], name: str, **labels: str) -> float:
    return sum(
        value
        for sample, found, value in samples
        if sample == name and labels.items() <= found.items() and not math.isnan(value)
    )


def _lag(samples: Iterable[Sample]) -> float:
    """Return the records not processed yet; each worker tells the lag of every partition, so the
    highest counts.
    """
    lags: dict[tuple[tuple[str, str], ...], float] = {}
    for sample, labels, value in samples:
        if sample == "kafka_consumer_lag":
            partition = tuple(sorted(labels.items()))
            lags[partition] = max(value, lags.get(partition, 0.0))
    return sum(lags.values())


def _rate(count: float, seconds: float) -> str:
    return f"{max(count, 0) / seconds:,.0f}"
