"""End to end: a backlog in Kafka, drained by a real `run_fanout` process."""

import re
import time
import urllib.request
from collections.abc import Iterable
from contextlib import suppress

from benchmarks import tables, workload
from benchmarks.stand import Stand
from benchmarks.workload import Network
from eventbus import kafka, producer
from eventbus.record import Record

SCRAPE_SECONDS = 0.1
PATIENCE_SECONDS = 120.0
EVENTS = re.compile(
    r'^event_processing_duration_seconds_count\{type="post.created"\} (\S+)', re.MULTILINE
)
CPU = re.compile(r"^process_cpu_seconds_total (\S+)", re.MULTILINE)
ROWS = re.compile(r"^fanout_rows_total (\S+)", re.MULTILINE)

Sample = tuple[float, float, float]  # seconds, events, rows


def run(stand: Stand, network: Network, events: int) -> None:
    """Publish `events` posts, start the worker and watch its metrics."""
    workload.load(network)
    tables.progress(f"draining a backlog of {events} events")
    publish(network, events)
    with stand.worker("run_fanout") as port:
        samples = _watch(port, events)
    # From the first scrape that shows progress: the start of the process and the join are not the
    # subject.
    (start, events_before, rows_before), (end, events_after, rows_after) = samples[0], samples[-1]
    seconds = end - start
    tables.table(
        f"Backlog of {events:,} events drained by one `run_fanout` ({network.name})",
        ["from Kafka to committed offsets", "a second"],
        [
            ["events", (events_after - events_before) / seconds],
            ["rows", (rows_after - rows_before) / seconds],
        ],
    )


def publish(network: Network, events: int) -> None:
    """Put `events` posts into Kafka and return when they are acknowledged."""
    authors = (network.authors * (events // len(network.authors) + 1))[:events]
    send(workload.records(authors))


def send(records: Iterable[Record]) -> None:
    """Put the records into Kafka and return when they are acknowledged."""
    for record in records:
        producer.get().send(kafka.FEED_EVENTS, record.key, record.value, (), _check)
    if producer.get().flush(60):
        raise RuntimeError("Kafka did not acknowledge the backlog")


def _check(error: object) -> None:
    if error is not None:
        tables.progress(f"not delivered: {error}")


def _watch(port: int, events: int) -> list[Sample]:
    samples: list[Sample] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            found = sample(port)
            if found[1] > 0:
                samples.append(found)
            if found[1] >= events:
                return samples
        time.sleep(SCRAPE_SECONDS)
    raise RuntimeError("run_fanout did not drain the backlog")


def sample(port: int) -> Sample:
    """Return the time, and how many events and rows a worker has counted since its start."""
    text = _metrics(port)
    return time.monotonic(), _value(EVENTS, text), _value(ROWS, text)


def cpu_seconds(port: int) -> float:
    """Return the CPU that a worker has used since its start."""
    return _value(CPU, _metrics(port))


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def _value(pattern: re.Pattern[str], text: str) -> float:
    found = pattern.search(text)
    return float(found[1]) if found else 0.0
