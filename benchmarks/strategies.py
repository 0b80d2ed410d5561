"""Push, hybrid and pull on the real graph: what a post costs to write, and a page to read."""

import random
from collections import Counter
from typing import Any

from django.test.utils import override_settings

from benchmarks import database, reading, tables, workload
from benchmarks.stand import Stand
from benchmarks.tables import progress
from benchmarks.workload import Network
from feeds import handlers

BATCH = 500
READERS = 100
# The largest account has 9,458 followers, so the default threshold of 10,000 would push everything.
STRATEGIES: dict[str, dict[str, Any]] = {
    "push": {"FEED_STRATEGY": "push"},
    "hybrid from 1,000 followers": {"FEED_STRATEGY": "hybrid", "FEED_PUSH_MAX_FOLLOWERS": 1_000},
    "hybrid from 100 followers": {"FEED_STRATEGY": "hybrid", "FEED_PUSH_MAX_FOLLOWERS": 100},
    "pull": {"FEED_STRATEGY": "pull"},
}


def run(stand: Stand, quick: bool) -> None:
    """Publish the same posts under each strategy, then read as the same users."""
    batches, times = (2, 1) if quick else (8, 5)
    network = workload.real_network() or workload.even_network(followers=99)
    readers = _readers(network)
    rows = []
    with stand.api() as port:
        for name, strategy in STRATEGIES.items():
            progress(f"strategies: {name}")
            with override_settings(**strategy):
                workload.load(network)
                written = _write(network, batches)
            rows.append([name, *written, *_read(reading.Client(port), readers, times)])
    head = ["strategy", "posts/s", "rows a post"]
    for group in readers:
        head += [f"{group}: uncached", "cached"]
    tables.table(f"Strategies on the {network.name}: reads over HTTP, p50 / p95 ms", head, rows)


def _readers(network: Network) -> dict[str, list[int]]:
    followees = Counter(follower for follower, _followee in network.follows)
    anyone = random.Random(3).sample(sorted(followees), READERS)
    return {
        "anyone": anyone,
        "who follow most": [user for user, _count in followees.most_common(READERS // 5)],
    }


def _write(network: Network, batches: int) -> list[tables.Cell]:
    authors = network.authors[: BATCH * batches]
    work = [
        workload.records(authors[start : start + BATCH]) for start in range(0, len(authors), BATCH)
    ]
    seconds = workload.process(handlers.subscription(), work)
    database.execute("VACUUM ANALYZE posts, feed_entries")
    return [
        len(authors) / seconds,
        database.value("SELECT count(*) FROM feed_entries") / len(authors),
    ]


def _read(client: reading.Client, readers: dict[str, list[int]], times: int) -> list[tables.Cell]:
    cells: list[tables.Cell] = []
    for users in readers.values():
        client.wait_for_cache(users[0])
        measures = (client.uncached, client.cached)
        cells.extend(reading.p50_p95(reading.repeat(read, users, times)) for read in measures)
    return cells
