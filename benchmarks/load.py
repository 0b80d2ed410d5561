"""An HTTP client for load, in a process of its own: reads a plan as JSON from stdin, prints what it
measured as JSON.

With a rate it sends on schedule whatever the answers do, and counts latency from the scheduled
moment.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

from benchmarks.tables import percentile


@dataclass(frozen=True)
class Plan:
    """`requests` are whole HTTP/1.1 requests, sent in turn; `rate` is requests a second, 0 for as
    many as possible.
    """

    port: int
    requests: list[str]
    connections: int
    seconds: float
    rate: float = 0.0


@dataclass(frozen=True)
class Load:
    """What came back; every answer but a 2xx is an error."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass
class _Counts:
    seconds: list[float] = field(default_factory=list)
    errors: int = 0


async def carry_out(plan: Plan) -> Load:
    """Send the requests of `plan` and return what was measured."""
    counts = _Counts()
    started = time.perf_counter()
    await asyncio.gather(
        *(_connection(plan, number, started, counts) for number in range(plan.connections))
    )
    seconds = time.perf_counter() - started
    return Load(
        rate=len(counts.seconds) / seconds,
        p50_ms=percentile(counts.seconds, 50) * 1000,
        p99_ms=percentile(counts.seconds, 99) * 1000,
        errors=counts.errors,
    )


async def _connection(plan: Plan, number: int, started: float, counts: _Counts) -> None:
    """Send every `connections`-th request, beginning with `number`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plan.port)
    turn = number
    while True:
        due = started + turn / plan.rate if plan.rate else time.perf_counter()
        if due >= started + plan.seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        writer.write(plan.requests[turn % len(plan.requests)].encode())
        status = await read_answer(reader)
        counts.seconds.append(time.perf_counter() - due)
        counts.errors += not 200 <= status < 300
        turn += plan.connections
    writer.close()


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        _before, _name, after = head.partition(b"content-length:")
        await reader.readexactly(int(after.split(b"\r\n", 1)[0] or 0))
    return int(head.split(b" ", 2)[1])


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(carry_out(Plan(**json.load(sys.stdin)))))))
