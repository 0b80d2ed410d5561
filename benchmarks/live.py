"""Live feeds: memory of many open streams, and the time from `202` to the event, beside posts."""

import asyncio
import json
import multiprocessing
import random
import resource
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import psutil
import uvloop

from benchmarks import requests, tables, workload
from benchmarks.reader import read_steadily
from benchmarks.stand import Stand

FOLLOWERS = 20
AUTHORS = 1_000
POST_RATE = 200
WARM_SECONDS = 2.0
QUIET_SECONDS = 5.0
FILES = 25_000
NEWEST = b'"newest_id":"'
OPENED_AT_ONCE = 200


@dataclass
class Streams:
    """Open streams of followers, and when each post was first told on them."""

    told_at: dict[str, list[float]] = field(default_factory=dict)
    transports: list[asyncio.BaseTransport] = field(default_factory=list)

    async def open(self, port: int, texts: Iterable[str]) -> None:
        """Open a stream for each request, and return when all are answered."""
        loop = asyncio.get_running_loop()
        together = asyncio.Semaphore(OPENED_AT_ONCE)

        async def one(text: str) -> None:
            async with together:
                stream = Stream(text.encode(), self.told_at, loop.create_future())
                transport, _ = await loop.create_connection(lambda: stream, "127.0.0.1", port)
                self.transports.append(transport)
                await stream.opened

        await asyncio.gather(*map(one, texts))

    def close(self) -> None:
        for transport in self.transports:
            transport.close()


class Stream(asyncio.Protocol):
    """One open stream, read with as little work as can be: there are thousands of events."""

    def __init__(
        self, request: bytes, told_at: dict[str, list[float]], opened: "asyncio.Future[None]"
    ) -> None:
        self._request = request
        self._told_at = told_at
        self.opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the posts that are told. An event comes in one piece."""
        now = time.perf_counter()
        for part in data.split(NEWEST)[1:]:
            self._told_at.setdefault(part.partition(b'"')[0].decode(), []).append(now)
        if not self.opened.done() and b"retry:" in data:
            self.opened.set_result(None)


def run(stand: Stand, quick: bool) -> None:
    """Open streams of followers, then post at a steady rate and see when each is told."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    count = 2_000 if quick else 10_000
    workload.load(workload.even_network(followers=FOLLOWERS, authors=AUTHORS, users=count))
    seconds = 5.0 if quick else 15.0
    with (
        stand.api(WORKERS="1", LIVE_MAX_STREAMS=str(count)) as port,
        stand.worker("run_fanout"),
        # A process of its own: this one is busy with the streams.
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside,
    ):
        row = uvloop.run(_measure(port, count, seconds, beside))
    head = [
        "streams",
        "MB before",
        "MB with them",
        "posts/s",
        "told",
        "p50 ms",
        "p99 ms",
        "cached reads p99 ms without",
        "with",
    ]
    tables.table("Live feeds: from 202 to the event on each stream", head, [row])


async def _measure(
    port: int, count: int, seconds: float, beside: ProcessPoolExecutor
) -> list[tables.Cell]:
    loop = asyncio.get_running_loop()
    [read] = requests.feeds([workload.FIRST_READER])
    texts = requests.posts(range(1, AUTHORS + 1))
    random.Random(1).shuffle(texts)  # those who follow one author follow the next few too
    tables.progress(f"live: {POST_RATE} posts a second, without streams")
    reads = loop.run_in_executor(beside, read_steadily, port, read, QUIET_SECONDS)
    await _post_steadily(port, texts, QUIET_SECONDS)
    alone = await reads
    before = _memory()
    streams = Streams()
    readers = [workload.FIRST_READER + number for number in range(count)]
    tables.progress(f"live: opening {count:,} streams")
    await streams.open(port, requests.streams(readers))
    await asyncio.sleep(3.0)  # until each has been counted
    opened = _memory()
    tables.progress(f"live: {POST_RATE} posts a second")
    reads = loop.run_in_executor(beside, read_steadily, port, read, WARM_SECONDS + seconds)
    begun = time.perf_counter() + WARM_SECONDS
    accepted = await _post_steadily(port, texts, WARM_SECONDS + seconds)
    await asyncio.sleep(2.0)
    streams.close()
    accepted = {post: moment for post, moment in accepted.items() if moment > begun}
    waits = [
        told - accepted[post]
        for post, times in streams.told_at.items()
        if post in accepted
        for told in times
    ]
    return [
        f"{count:,}",
        before / 1e6,
        opened / 1e6,
        POST_RATE,
        f"{len(waits):,} of {len(accepted) * FOLLOWERS:,}",
        tables.percentile(waits, 50) * 1000,
        tables.percentile(waits, 99) * 1000,
        tables.percentile(alone, 99) * 1000,
        tables.percentile(await reads, 99) * 1000,
    ]


async def _post_steadily(port: int, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """Post at `POST_RATE`; return when each post was accepted."""
    accepted: dict[str, float] = {}
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * POST_RATE)):
            due = started + number / POST_RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(_post(port, texts[number % AUTHORS], accepted))
    return accepted


async def _post(port: int, text: str, accepted: dict[str, float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    answered_at = time.perf_counter()
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    accepted[json.loads(await reader.readexactly(length))["id"]] = answered_at
    writer.close()


def _memory() -> int:
    """Return the resident bytes of the process that serves the API."""
    family = psutil.Process().children(recursive=True)
    serving = [child for child in family if "granian" in " ".join(child.cmdline())]
    return max(process.memory_info().rss for process in serving)
