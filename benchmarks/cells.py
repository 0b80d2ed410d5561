"""What a division into cells costs: one cell and two on the same cores, in the same run.

Both apply the same records: one cell by two workers, two cells by a worker each.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from benchmarks import backlog, cell_stand, http_load, requests, tables, workload
from benchmarks.cell_stand import Cells
from benchmarks.load import Load
from benchmarks.stand import Stand
from benchmarks.tables import progress
from benchmarks.workload import Network
from eventbus.cellmap import SLOTS
from eventbus.cells import slot_of
from eventbus.record import Record
from feedsite.embedded import state
from feedsite.embedded.postgres import POSTGRES

AUTHORS, USERS = 200, 20_000
FOLLOWERS = (100, 1_000)
# Of the first half of the slots, as is everybody who follows them.
LONELY_AUTHORS = 100
HALF = SLOTS // 2
READERS = 2_000
CONNECTIONS = 64
PATIENCE_SECONDS = 120.0
LOOK_SECONDS = 0.02
SETTLED_LOOKS = 2


class Work(NamedTuple):
    """What it took to apply some records; the CPU is that of the workers and their PostgreSQL, and
    tells more than the clock where other work runs beside.
    """

    seconds: float
    cpu: float
    rows: float


@dataclass
class Workers:
    """Those of one cell or two; `copies` is how many of them apply each event."""

    ports: list[int]
    directories: list[Path]  # of the PostgreSQL of each cell
    copies: int

    def apply(self, records: Sequence[Record]) -> Work:
        """Publish the records; return what it took until all are applied."""
        before, cpu_before = self._counted(), self._cpu()
        started = time.perf_counter()
        backlog.send(records)
        deadline = time.monotonic() + PATIENCE_SECONDS
        events, rows = before
        while events < before[0] + len(records) * self.copies:
            _give_up_at(deadline)
            time.sleep(LOOK_SECONDS)
            events, rows = self._counted()
        seconds = time.perf_counter() - started
        return Work(seconds, self._cpu() - cpu_before, rows - before[1])

    def _counted(self) -> tuple[float, float]:
        samples = [backlog.sample(port) for port in self.ports]
        return sum(found[1] for found in samples), sum(found[2] for found in samples)

    def _cpu(self) -> float:
        return sum(map(backlog.cpu_seconds, self.ports)) + sum(map(_cpu_of, self.directories))


def run(stand: Stand, quick: bool) -> None:
    """Compare fan-out and reads of one cell and of two; measure what others' events cost a cell."""
    rounds, runs, rows = (1, 2, 400_000) if quick else (2, 3, 800_000)
    with cell_stand.started(stand) as cells:
        bench = Bench(stand, cells)
        for followers in FOLLOWERS[:1] if quick else FOLLOWERS:
            network = _network(followers)
            progress(f"cells: loading {len(network.follows):,} follows")
            workload.load(network)
            cells.load(network)
            bench.fan_out(network, rounds, runs, events=rows // followers)
        others = bench.others_events(runs, events=rows // FOLLOWERS[0])
        bench.alone(network, runs, rows // followers, others)
        bench.reads(network, rounds=2 if quick else 5, seconds=2.0)


class Bench:
    """The measurements, of the newest events in Kafka."""

    def __init__(self, stand: Stand, cells: Cells) -> None:
        self._stand = stand
        self._cells = cells

    def fan_out(self, network: Network, rounds: int, runs: int, events: int) -> None:
        """Have the same number of workers apply the same posts, in one cell and in two."""
        one: list[Work] = []
        two: list[Work] = []
        authors = (network.authors * (events // len(network.authors) + 1))[:events]
        for number in range(rounds):
            for name, works, workers in (
                ("one cell", one, self._one_cell),
                ("two cells", two, self._two_cells),
            ):
                progress(f"cells: fan-out in {name}, round {number + 1} of {rounds}")
                with workers() as running:
                    works += [running.apply(workload.records(authors)) for _ in range(runs)]
        rates = [[work.rows / work.seconds for work in works] for works in (one, two)]
        of_cpu = [[work.rows / work.cpu for work in works] for works in (one, two)]
        tables.table(
            f"Fan-out by two workers ({network.name}), medians of {rounds * runs} runs",
            ["", "rows/s", "of one cell", "rows a second of CPU", "of one cell"],
            [
                ["one cell, two workers", median(rates[0]), "", median(of_cpu[0]), ""],
                [
                    "two cells, a worker each",
                    median(rates[1]),
                    tables.ratio(rates[1], rates[0]),
                    median(of_cpu[1]),
                    tables.ratio(of_cpu[1], of_cpu[0]),
                ],
            ],
        )

    def others_events(self, runs: int, events: int) -> float:
        """Measure a worker of b alone at posts that concern readers of a alone; return the CPU that
        each takes, in µs.
        """
        lonely = _of_the_first_half(LONELY_AUTHORS, AUTHORS + 1)
        authors = (lonely * (events // LONELY_AUTHORS + 1))[:events]
        progress("cells: posts that concern nobody in the cell")
        with self._workers({"b": 1}, self._cells.environment, copies=1) as running:
            works = [running.apply(workload.records(authors)) for _ in range(runs)]
        if any(work.rows for work in works):
            raise RuntimeError("these posts were to concern nobody in cell b")
        cpu = median(work.cpu / events * 1e6 for work in works)
        tables.table(
            f"Posts none of whose readers a cell has, one worker, medians of {runs} runs",
            ["", "events/s", "µs each", "µs of CPU each"],
            [
                [
                    "cell b",
                    median(events / work.seconds for work in works),
                    median(work.seconds / events * 1e6 for work in works),
                    cpu,
                ]
            ],
        )
        return cpu

    def alone(self, network: Network, runs: int, events: int, others: float) -> None:
        """Have two workers of each cell apply the same posts with the machine to themselves; `others`
        is the CPU, in µs, of a post none of whose readers the cell has.
        """
        authors = (network.authors * (events // len(network.authors) + 1))[:events]
        rows: list[list[tables.Cell]] = []
        for name in cell_stand.SLOTS:
            progress(f"cells: fan-out in cell {name} alone")
            with self._workers({name: 2}, self._cells.environment, copies=1) as running:
                works = [running.apply(workload.records(authors)) for _ in range(runs)]
            cpu = median(work.cpu / events * 1e6 for work in works)
            rows.append(
                [
                    f"cell {name}",
                    median(events / work.seconds for work in works),
                    cpu,
                    1e6 / cpu,
                    f"{others / cpu:.0%}",
                ]
            )
        tables.table(
            f"Each cell alone, two workers ({network.name}), medians of {runs} runs",
            [
                "",
                "events/s",
                "µs of CPU each",
                "events a second of CPU",
                "also without readers here",
            ],
            rows,
        )

    def reads(self, network: Network, rounds: int, seconds: float) -> None:
        """Read pages that are cached, and pages that are in no cache, by one API or the other."""
        readers = sorted({reader for reader, _ in network.follows})[:READERS]
        what = {"cached": requests.feeds(readers), "not cached": requests.pages(readers)}
        loads: dict[tuple[str, str], list[Load]] = {}
        # No worker beside them, so nothing voids a page.
        with self._stand.api() as one, self._stand.api(**self._cells.environment) as two:
            apis = {"one cell": one, "two cells": two}
            for kind, asked in what.items():
                for port in apis.values():
                    http_load.closed(port, asked, CONNECTIONS, seconds * 2)  # warm-up
                for number in range(rounds):
                    progress(f"cells: reads, {kind}, round {number + 1} of {rounds}")
                    for name, port in apis.items():
                        load = http_load.closed(port, asked, CONNECTIONS, seconds)
                        loads.setdefault((kind, name), []).append(load)
        rows: list[list[tables.Cell]] = []
        for (kind, name), found in loads.items():
            rates = [load.rate for load in found]
            base = [load.rate for load in loads[kind, "one cell"]]
            rows.append(
                [
                    f"{kind}, {name}",
                    median(rates),
                    median(load.p50_ms for load in found),
                    tables.ratio(rates, base) if name != "one cell" else "",
                    str(sum(load.errors for load in found)),
                ]
            )
        tables.table(
            f"First pages of {len(readers):,} readers at {CONNECTIONS} connections, medians of "
            f"{rounds} runs",
            ["page", "req/s", "p50 ms", "of one cell", "errors"],
            rows,
        )

    def _one_cell(self) -> AbstractContextManager[Workers]:
        return self._workers({"": 2}, {}, copies=1)

    def _two_cells(self) -> AbstractContextManager[Workers]:
        return self._workers({"a": 1, "b": 1}, self._cells.environment, copies=2)

    @contextmanager
    def _workers(
        self, numbers: dict[str, int], environment: dict[str, str], copies: int
    ) -> Iterator[Workers]:
        """Run so many workers of each cell, from when they have caught up and share the work."""
        with ExitStack() as running:
            ports = [
                running.enter_context(
                    self._stand.worker("run_fanout", **environment, FEED_CELL=name)
                )
                for name, number in numbers.items()
                for _ in range(number)
            ]
            directories = [
                self._cells.directories.get(name, self._stand.directory) for name in numbers
            ]
            _wait_until_all_take_part(ports)
            yield Workers(ports, directories, copies)


def _wait_until_all_take_part(ports: list[int]) -> None:
    """Wait until each worker has caught up, and takes a part of what comes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    before = [0.0] * len(ports)
    settled = 0
    while settled < SETTLED_LOOKS:
        _give_up_at(deadline)
        # Keys of many partitions, so each worker of a group gets some.
        backlog.send(workload.records(range(1, AUTHORS + 1)))
        time.sleep(1.0)
        now = [_counted(port) for port in ports]
        news = [after - earlier for after, earlier in zip(now, before, strict=True)]
        # More than that was waiting, from before they were started.
        is_fresh = all(0 < count <= AUTHORS for count in news)
        settled = settled + 1 if is_fresh else 0
        before = now


def _counted(port: int) -> float:
    """Return the events that a worker has applied; none while it is starting."""
    with suppress(OSError):
        return backlog.sample(port)[1]
    return 0.0


def _give_up_at(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError("the workers did not catch up")


def _network(followers: int) -> Network:
    """Return an even network, and authors of whom only readers of the first half of the slots
    hear, who are none of its authors.
    """
    even = workload.even_network(followers, AUTHORS, USERS)
    readers = _of_the_first_half(FOLLOWERS[0], workload.FIRST_READER)
    lonely = [
        (reader, author)
        for author in _of_the_first_half(LONELY_AUTHORS, AUTHORS + 1)
        for reader in readers
    ]
    return Network(even.name, even.follows + lonely, even.authors)


def _cpu_of(directory: Path) -> float:
    """Return the seconds of CPU that the PostgreSQL there has used, with its processes that are no
    more.
    """
    server = psutil.Process(state.read(directory)[POSTGRES.variable].pid)
    own = server.cpu_times()
    times = [child.cpu_times() for child in server.children()]
    living = sum(float(of.user + of.system) for of in times)
    return living + float(own.user + own.system + own.children_user + own.children_system)


def _of_the_first_half(count: int, first: int) -> list[int]:
    users: list[int] = []
    user = first
    while len(users) < count:
        if slot_of(user) < HALF:
            users.append(user)
        user += 1
    return users
