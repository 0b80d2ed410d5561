"""Live feeds: memory of many open streams, and the time from `202` to the event, beside posts."""

import asyncio
import json
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import psutil

from benchmarks import requests, tables, workload
from benchmarks.stand import Stand

FOLLOWERS = 20
AUTHORS = 1_000
POST_RATE = 200
FILES = 25_000
OPENED_AT_ONCE = 200


@dataclass
class Streams:
    """Open streams of followers, and when each post was first told on them."""

    told_at: dict[str, list[float]] = field(default_factory=dict)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def open(self, port: int, texts: Iterable[str]) -> None:
        """Open a stream for each request, and return when all are answered."""
        together = asyncio.Semaphore(OPENED_AT_ONCE)

        async def one(text: str) -> None:
            async with together:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(text.encode())
                await reader.readuntil(b"retry:")
            self.writers.append(writer)
            self.tasks.append(asyncio.create_task(self._read(reader)))

        await asyncio.gather(*map(one, texts))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if line.startswith(b'data: {"newest_id"'):
                newest = json.loads(line[len(b"data: ") :])["newest_id"]
                self.told_at.setdefault(newest, []).append(time.perf_counter())

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for writer in self.writers:
            writer.close()


def run(stand: Stand, quick: bool) -> None:
    """Open streams of followers, then post at a steady rate and see when each is told."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    count = 2_000 if quick else 10_000
    workload.load(workload.even_network(followers=FOLLOWERS, authors=AUTHORS, users=count))
    rows = []
    with stand.api(WORKERS="1", LIVE_MAX_STREAMS=str(count)) as port, stand.worker("run_fanout"):
        before = _memory()
        rows += [asyncio.run(_measure(port, count, 5.0 if quick else 15.0, before))]
    head = ["streams", "MB of the process more", "posts/s", "told", "p50 ms", "p99 ms"]
    tables.table("Live feeds: from 202 to the event on each stream", head, rows)


async def _measure(port: int, count: int, seconds: float, before: int) -> list[tables.Cell]:
    streams = Streams()
    readers = [workload.FIRST_READER + number for number in range(count)]
    tables.progress(f"live: opening {count:,} streams")
    await streams.open(port, requests.streams(readers))
    await asyncio.sleep(3.0)  # until each has been counted
    grown = (_memory() - before) / 1e6
    accepted: dict[str, float] = {}
    texts = requests.posts(range(1, AUTHORS + 1))
    tables.progress(f"live: {POST_RATE} posts a second")
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * POST_RATE)):
            due = started + number / POST_RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(_post(port, texts[number % AUTHORS], accepted))
    await asyncio.sleep(2.0)
    streams.close()
    waits = [
        told - accepted[post]
        for post, times in streams.told_at.items()
        if post in accepted
        for told in times
    ]
    return [
        f"{count:,}",
        grown,
        POST_RATE,
        f"{len(waits):,} of {len(accepted) * FOLLOWERS:,}",
        tables.percentile(waits, 50) * 1000,
        tables.percentile(waits, 99) * 1000,
    ]


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
