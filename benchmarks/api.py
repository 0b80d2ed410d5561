"""`POST /posts` and cached `GET /feeds/{id}` beside what the same server and Kafka give without
Django.
"""

import json
import random
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from django.conf import settings

from benchmarks import http_load, requests, tables, workload
from benchmarks.limits import TOPIC
from benchmarks.load import Load
from benchmarks.stand import ROOT, Stand
from eventbus import kafka
from feeds import handlers

CONNECTIONS = (32, 64, 128)
WARM_UP_SECONDS = 2.0
USERS = range(1, 51)
PROCESSES = 2  # as many as the API has workers
READERS = 20_000
MANY_CONNECTIONS = 64
AUTHORS_OF_MANY, FOLLOWERS_OF_MANY, POSTS_OF_MANY = 200, 1_500, 3
FILL_SECONDS = 8.0
MISSES = 'feed_cache_requests_total{result="miss"}'

Measure = Callable[[int, float], Load]


def run(stand: Stand, quick: bool) -> None:
    """Measure at each number of connections, the API and its limits in turn, without workers beside
    them.
    """
    runs, seconds = (1, 2.0) if quick else (3, 3.0)
    workload.load(workload.even_network(followers=20, authors=len(USERS), users=500))
    fill_feeds()
    _create_limit_topic()
    with (
        stand.api() as port,
        stand.api(APPLICATION="benchmarks.limits:application", PAGE_BYTES=_page(port)) as bare,
    ):
        posts, feeds = requests.posts(USERS), requests.feeds(USERS)
        measures: dict[str, Measure] = {
            "POST /posts": lambda c, s: http_load.closed(port, posts, c, s),
            "limit: bare RSGI + Kafka": lambda c, s: http_load.closed(bare, posts, c, s),
            "limit: Kafka alone": _kafka,
            "GET /feeds/{id}, cached": lambda c, s: http_load.closed(port, feeds, c, s),
            "limit: bare RSGI": lambda c, s: http_load.closed(bare, feeds, c, s),
        }
        results = _measure(measures, runs, seconds)
        many = _many_readers(port, bare, runs, seconds)
    _report(results, runs)
    head = ["request", "connections", "req/s", "p50 ms", "p99 ms", "of limit", "errors"]
    tables.table(
        f"First pages of {READERS:,} readers at random, most of them in Redis alone", head, many
    )


def _many_readers(port: int, bare: int, runs: int, seconds: float) -> list[list[tables.Cell]]:
    """Measure first pages that are in Redis, but for the most part not in the process that is
    asked.
    """
    tables.progress(f"API: pages for {READERS:,} readers")
    workload.load(
        workload.even_network(followers=FOLLOWERS_OF_MANY, authors=AUTHORS_OF_MANY, users=READERS)
    )
    authors = list(range(1, AUTHORS_OF_MANY + 1))
    workload.process(
        handlers.subscription(), [workload.records(authors) for _ in range(POSTS_OF_MANY)]
    )
    readers = [workload.FIRST_READER + number for number in range(READERS)]
    random.Random(1).shuffle(readers)
    requests_of_all = requests.feeds(readers)
    _fill(port, requests_of_all)
    ours, limit = [], []
    for _ in range(runs):
        ours.append(http_load.closed(port, requests_of_all, MANY_CONNECTIONS, seconds))
        limit.append(http_load.closed(bare, requests_of_all, MANY_CONNECTIONS, seconds))
    return [
        _row("GET /feeds/{id}, in Redis", MANY_CONNECTIONS, ours, limit),
        _row("limit: bare RSGI", MANY_CONNECTIONS, limit, []),
    ]


def _fill(port: int, requests_of_all: list[str]) -> None:
    """Read until every page is in Redis, and each process has seen the tokens."""
    missed, missed_before = 0.0, -1.0
    while missed > missed_before:
        http_load.closed(port, requests_of_all, MANY_CONNECTIONS, FILL_SECONDS)
        missed, missed_before = _metric(port, MISSES), missed


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def _measure(
    measures: dict[str, Measure], runs: int, seconds: float
) -> dict[tuple[str, int], list[Load]]:
    results: dict[tuple[str, int], list[Load]] = defaultdict(list)
    for name, measure in measures.items():
        tables.progress(f"warming up: {name}")
        measure(CONNECTIONS[0], WARM_UP_SECONDS)
    for connections in CONNECTIONS:
        for number in range(runs):
            tables.progress(f"API at {connections} connections: run {number + 1} of {runs}")
            for name, measure in measures.items():
                results[name, connections].append(measure(connections, seconds))
    return results


def _report(results: dict[tuple[str, int], list[Load]], runs: int) -> None:
    limits = {
        "POST /posts": "limit: bare RSGI + Kafka",
        "GET /feeds/{id}, cached": "limit: bare RSGI",
    }
    rows = []
    for (name, connections), loads in results.items():
        rows.append(
            _row(name, connections, loads, results.get((limits.get(name, ""), connections), []))
        )
    order = list(dict.fromkeys(name for name, _connections in results))
    rows.sort(key=lambda row: order.index(str(row[0])))
    head = ["request", "connections", "req/s", "p50 ms", "p99 ms", "of limit", "errors"]
    tables.table(f"API, {settings_line()}, medians of {runs} runs", head, rows)


def _row(name: str, connections: int, loads: list[Load], limit: list[Load]) -> list[tables.Cell]:
    rates = [load.rate for load in loads]
    return [
        name,
        str(connections),
        median(rates),
        median(load.p50_ms for load in loads),
        median(load.p99_ms for load in loads),
        tables.ratio(rates, [load.rate for load in limit]) if limit else "",
        str(sum(load.errors for load in loads)),
    ]


def settings_line() -> str:
    """Return what the API ran with."""
    return f"`bin/serve`, linger {settings.KAFKA_LINGER_MS} ms, no worker beside it"


def _kafka(waits: int, seconds: float) -> Load:
    """Keep `waits` records under way, spread over as many processes as the API has."""
    with ThreadPoolExecutor(PROCESSES) as threads:
        parts = list(
            threads.map(lambda _n: _kafka_process(waits // PROCESSES, seconds), range(PROCESSES))
        )
    return Load(
        rate=sum(part["rate"] for part in parts),
        p50_ms=median(part["p50"] for part in parts) * 1000,
        p99_ms=max(part["p99"] for part in parts) * 1000,
        errors=0,
    )


def _kafka_process(waits: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.kafka_limit", str(waits), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def fill_feeds() -> None:
    """Give every user's feed a full first page."""
    workload.process(handlers.subscription(), [workload.records(list(USERS) * 20)])


def _create_limit_topic() -> None:
    admin = AdminClient(kafka.client_config())
    admin.create_topics([NewTopic(TOPIC, settings.KAFKA_PARTITIONS, 1)])[TOPIC].result()


def _page(port: int) -> str:
    """Return the size of the page that is read."""
    first = requests.feeds([USERS[0]])[0]
    token = first.partition("Authorization: ")[2].partition("\r\n")[0]
    url = f"http://127.0.0.1:{port}/feeds/{USERS[0]}"
    with urllib.request.urlopen(
        urllib.request.Request(url, headers={"Authorization": token}), timeout=10
    ) as answer:
        return str(len(answer.read()))
