"""Fan-out: rows a second of the real path beside one bare INSERT … SELECT of the same rows on the same server."""

import itertools
import time
from collections.abc import Sequence
from statistics import median

from django.db import connection

from benchmarks import backlog, tables, workload
from benchmarks.stand import Stand
from benchmarks.tables import progress
from benchmarks.timers import Timers
from benchmarks.workload import Network
from eventbus import envelope
from eventbus.subscription import Record
from feeds import handlers

BATCH = 500


def run(stand: Stand, quick: bool) -> None:
    """Measure an even network and, where its file is, a real one; then a backlog in Kafka."""
    runs, batches = (3, 2) if quick else (5, 4)
    even, real = workload.even_network(followers=99), workload.real_network()
    rows = []
    for network in [even, real] if real else [even]:
        workload.load(network)
        rows.append(_compare(network, runs, batches))
        _profile(network, batches)
    head = ["network", "rows a batch", "real path, rows/s", "bare by batch", "bare at once", "ratio", "ratio at once"]
    tables.table(f"Fan-out: batches of {BATCH} posts, {batches} a run, medians of {runs} runs", head, rows)
    if not real:
        tables.note(f"The real graph was left out: {workload.GRAPH} is not in ../shared/data.")
    backlog.run(stand, even, events=4_000 if quick else 20_000)


def _compare(network: Network, runs: int, batches: int) -> list[tables.Cell]:
    real, by_batch, at_once = [], [], []
    rows = 0
    for number in range(runs + 1):
        progress(f"fan-out, {network.name}: run {number} of {runs}" + ("" if number else " (warm-up)"))
        work = _batches(network, batches)
        _reset("posts, feed_entries, processed_events")
        real.append(workload.process(handlers.subscription(), work))
        rows = _stage(work)
        by_batch.append(_bare([f"staged_{n}" for n in range(batches)]))
        at_once.append(_bare(["staged"]))
    rates = [[rows / seconds for seconds in measured[1:]] for measured in (real, by_batch, at_once)]
    return [
        network.name,
        rows / batches,
        *(median(rate) for rate in rates),
        tables.ratio(rates[0], rates[1]),
        tables.ratio(rates[0], rates[2]),
    ]


def _batches(network: Network, batches: int) -> workload.Batches:
    authors = (network.authors * (batches * BATCH // len(network.authors) + 1))[: batches * BATCH]
    return [workload.records(authors[n * BATCH : (n + 1) * BATCH]) for n in range(batches)]


def _stage(batches: workload.Batches) -> int:
    """Copy the rows just written, by batch and together, each in the order of the key; return their number."""
    _execute("DROP TABLE IF EXISTS staged, bare")
    _execute("CREATE TABLE bare (LIKE feed_entries INCLUDING ALL)")
    _execute("CREATE TABLE staged AS SELECT * FROM feed_entries ORDER BY user_id, post_id")
    ends = [0, *(_last_post(batch) for batch in batches)]
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        _execute(f"DROP TABLE IF EXISTS staged_{number}")
        _execute(
            f"CREATE TABLE staged_{number} AS SELECT * FROM staged "  # noqa: S608 - numbers of our own
            f"WHERE post_id > {start} AND post_id <= {end} ORDER BY user_id, post_id"
        )
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM staged")
        return int(cursor.fetchone()[0])


def _last_post(batch: list[Record]) -> int:
    event = envelope.decode(batch[-1].value, batch[-1].key)
    return int(handlers.to_fact(event).post_id)


def _bare(sources: Sequence[str]) -> float:
    """Insert the staged rows into the identical empty table, a statement a source; return the seconds."""
    _reset("bare")
    started = time.perf_counter()
    for source in sources:
        _execute(f"INSERT INTO bare SELECT * FROM {source}")  # noqa: S608 - names of our own
    return time.perf_counter() - started


def _profile(network: Network, batches: int) -> None:
    work, timers = _batches(network, batches), Timers()
    _reset("posts, feed_entries, processed_events")
    with timers.statements():
        total = workload.process(timers.subscription(handlers.subscription()), work)
    timers.seconds["Python: decode, bookkeeping"] = total - sum(timers.seconds.values())
    parts = sorted(timers.seconds.items(), key=lambda part: -part[1])
    rows = [[part, f"{s / batches * 1000:.1f}", f"{s / total:.0%}"] for part, s in parts if s / total >= 0.005]
    tables.table(f"Where a batch's time goes ({network.name}, one run)", ["part", "ms a batch", "share"], rows)


def _reset(names: str) -> None:
    """Empty the tables and write out what is dirty, so that no run pays for an earlier one."""
    _execute(f"TRUNCATE {names}")
    # CHECKPOINT is for superusers; dropping a database forces one.
    _execute("CREATE DATABASE checkpoint")
    _execute("DROP DATABASE checkpoint")


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
