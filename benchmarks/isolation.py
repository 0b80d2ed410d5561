"""What everybody else waits for while one server stands still, and while clients leave their
requests half sent.
"""

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice

from benchmarks import requests, tables, workload
from benchmarks.api import fill_feeds
from benchmarks.load import read_answer
from benchmarks.stand import Stand
from feedsite.embedded.kafka import KAFKA
from feedsite.embedded.postgres import POSTGRES
from feedsite.embedded.valkey import VALKEY
from tests.crash.outages import frozen

USERS = range(1, 51)
# Read for the first time, so that their pages are in no process and not in Redis.
READERS = 2_500
FIRST_READS_A_SECOND = 20
HALF_REQUESTS = 1_000
FILES = 8_192
LONGEST_SECONDS = 30.0
NOT_ANSWERED = 0
HEALED_WITHIN_SECONDS = 30.0


@dataclass
class Kind:
    """One kind of request, sent so many times a second whatever the answers do, each on a
    connection of its own.
    """

    name: str
    rate: float
    texts: list[str]
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    async def send(self, port: int, number: int) -> None:
        """Send one request and note how long its answer took."""
        began = time.perf_counter()
        status = NOT_ANSWERED
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(LONGEST_SECONDS):
                status = await _ask(port, self.texts[number % len(self.texts)])
        self.seconds.append(time.perf_counter() - began)
        self.statuses[status] += 1


def run(stand: Stand, quick: bool) -> None:
    """Freeze each server in turn, then leave a thousand requests half sent, with all kinds of
    requests going on.
    """
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    seconds = 10.0 if quick else 20.0
    workload.load(workload.even_network(followers=100, authors=len(USERS), users=READERS))
    fill_feeds()
    readers = iter(range(workload.FIRST_READER, workload.FIRST_READER + READERS))
    rows: list[list[tables.Cell]] = []
    with stand.api() as port, stand.worker("run_fanout"):
        asyncio.run(_load(port, _kinds(USERS), 5.0))  # connections are made, pages cached
        for server, name in (
            (None, "nothing"),
            (KAFKA, "Kafka"),
            (POSTGRES, "PostgreSQL"),
            (VALKEY, "Redis"),
        ):
            tables.progress(f"isolation: {name} stands still")
            with frozen(server) if server else nullcontext():
                kinds = asyncio.run(_load(port, _kinds(_next(readers, seconds)), seconds))
            rows += _rows(f"{name} stands still", kinds)
            healed = asyncio.run(_healed(port))
            rows.append([f"{name} is back", "all of them", "", "", "", f"2xx after {healed:.1f} s"])
        tables.progress("isolation: requests half sent")
        kinds = asyncio.run(_beside_half_requests(port, _kinds(_next(readers, seconds)), seconds))
        rows += _rows(f"{HALF_REQUESTS:,} half requests", kinds)
    head = ["while", "request", "a second", "p50 ms", "p99 ms", "answers"]
    tables.table("Everybody else, while one server or some clients stand still", head, rows)


def _next(readers: Iterator[int], seconds: float) -> list[int]:
    """Return as many who have read nothing yet as will read in that time."""
    return list(islice(readers, int(seconds * FIRST_READS_A_SECOND)))


def _kinds(first_readers: Iterable[int]) -> list[Kind]:
    first_reads = requests.feeds(first_readers)
    return [
        Kind("GET /healthz", 20, ["GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]),
        Kind("GET /feeds/{id}, cached", 50, requests.feeds(USERS)),
        Kind("GET /feeds/{id}, read for the first time", FIRST_READS_A_SECOND, first_reads),
        Kind("GET /feeds/{id}, another page", 20, requests.pages(USERS)),
        Kind("POST /posts", 20, requests.posts(USERS)),
    ]


async def _load(port: int, kinds: list[Kind], seconds: float) -> list[Kind]:
    await asyncio.gather(*(_send_on_schedule(port, kind, seconds) for kind in kinds))
    return kinds


async def _send_on_schedule(port: int, kind: Kind, seconds: float) -> None:
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * kind.rate)):
            due = started + number / kind.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(kind.send(port, number))


async def _beside_half_requests(port: int, kinds: list[Kind], seconds: float) -> list[Kind]:
    head = requests.posts([1])[0].partition("\r\n\r\n")[0]
    halves = [
        "POST /posts HT",
        head[:60],
        f"{head}\r\n\r\n{{",
        "GET /feeds/1 HTTP/1.1\r\nHost: x\r\n",
    ]
    writers = []
    for number in range(HALF_REQUESTS):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(halves[number % len(halves)].encode())
        writers.append(writer)
    await _load(port, kinds, seconds)
    for writer in writers:
        writer.close()
    return kinds


async def _healed(port: int) -> float:
    """Return after how many seconds every kind of request was answered with 2xx again."""
    began = time.monotonic()
    while time.monotonic() - began < HEALED_WITHIN_SECONDS:
        kinds = _kinds(USERS)
        await asyncio.gather(*(kind.send(port, 0) for kind in kinds))
        if all(200 <= status < 300 for kind in kinds for status in kind.statuses):
            return time.monotonic() - began
        await asyncio.sleep(0.2)
    raise RuntimeError("The API did not heal.")


async def _ask(port: int, text: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(text.encode())
        return await read_answer(reader)
    finally:
        writer.close()


def _rows(state_of_things: str, kinds: list[Kind]) -> list[list[tables.Cell]]:
    return [
        [
            state_of_things,
            kind.name,
            f"{kind.rate:.0f}",
            tables.percentile(kind.seconds, 50) * 1000,
            tables.percentile(kind.seconds, 99) * 1000,
            ", ".join(
                f"{status or 'none'}: {count:,}" for status, count in sorted(kind.statuses.items())
            ),
        ]
        for kind in kinds
    ]
