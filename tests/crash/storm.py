"""What `tests.crash.chaos` does to the system, and what it counts afterwards."""

import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from eventbus import cells, envelope, kafka, producer
from eventbus.cells import Cell
from eventbus.exceptions import PublishFailed
from eventbus.ids import node_lease
from eventbus.models import DeadLetter
from feeds.partitions import partitions
from feedsite.embedded.postgres import POSTGRES
from feedsite.embedded.processes import Server
from feedsite.embedded.valkey import VALKEY
from tests.crash import network as networks
from tests.crash import outages
from tests.crash.die_at import POINTS
from tests.crash.load import Load
from tests.crash.network import Differences, Network, settled_everywhere
from tests.crash.outages import EmbeddedServer, Stoppable
from tests.e2e.system import Process, System, environment, running, wait_until

WORKERS = 3
FIRST_USER = 1_000
SETTLE_SECONDS = 120.0
PROCESSES = ("run_", "API")
# Leases for ids that PostgreSQL forgets twice within ten minutes may be given away twice (ADR 25).
BETWEEN_FAILOVERS_SECONDS = 600.0
# Those of a worker's points that any batch passes.
DEADLY = [
    point
    for point in POINTS
    if POINTS[point][0]
    in ("eventbus.consume.consumer", "eventbus.consume.processing", "feeds.read.pages")
]


def run(directory: Path, broker: Stoppable | None, seed: int, seconds: float) -> int:
    """Do random harm for `seconds`; return the exit status."""
    # A process of its own, which is about each cell.
    subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], env=environment(), check=True)
    kafka.create_topics()
    with running(directory) as system:
        system.api()
        storm = Storm(system, networks.build(system, FIRST_USER), seed, broker)
        storm.rage(seconds)
        lost, doubled = storm.count()
        producer.close()
        node_lease.forget()
    storm.tell(lost, doubled)
    return 1 if lost or doubled or storm.stuck else 0


class Storm:
    """Breaks one thing at a time, repairs it, and notes how long it took until all was well
    again.
    """

    def __init__(
        self, system: System, network: Network, seed: int, broker: Stoppable | None
    ) -> None:
        self._system = system
        self._network = network
        self._chance = random.Random(seed)
        self._api = system.processes[0]
        names = list(cells.every())
        # At least one for each cell.
        self._cell_of_worker = [names[number % len(names)] for number in range(WORKERS)]
        self._workers = [system.worker(FEED_CELL=name) for name in self._cell_of_worker]
        self._stores = {name: self._new_store(name) for name in names}
        self.stuck = False  # a fault from which there was no recovery
        self._poison: list[bytes] = []
        self._recoveries: defaultdict[str, list[float]] = defaultdict(list)
        self._load = Load(network, seed)
        self._next_failover = 0.0  # monotonic seconds
        self._faults: dict[str, Callable[[], None]] = {
            "run_fanout killed": self._kill_worker,
            "run_fanout killed at a named point": self._kill_worker_at_a_point,
            "run_fanout frozen": self._freeze_worker,
            "run_dlq killed": self._kill_store,
            "API killed": self._kill_api,
            "PostgreSQL restarted": lambda: self._restart(
                outages.postgres.stop, outages.postgres.start
            ),
            "PostgreSQL killed": lambda: self._restart(
                outages.postgres.kill, outages.postgres.start
            ),
            "PostgreSQL read-only for a while": lambda: self._restart(
                outages.make_read_only, outages.make_writable
            ),
            "PostgreSQL failed over to an older copy": self._fail_over,
            "Valkey killed": lambda: self._restart(outages.valkey.kill, outages.valkey.start),
        }
        if broker:
            self._faults["Kafka killed"] = lambda: self._restart(broker.kill, broker.start)

        # The servers of the first cell are those above.
        for cell in list(cells.every().values())[1:]:
            directory = outages.data_dir() / f"cell-{cell.name}"
            self._add_kill(f"PostgreSQL of cell {cell.name} killed", POSTGRES, directory)
            self._add_kill(f"Valkey of cell {cell.name} killed", VALKEY, directory)

    def _add_kill(self, name: str, kind: Server, directory: Path) -> None:
        server = EmbeddedServer(kind, directory)
        self._faults[name] = lambda: self._restart(server.kill, server.start)

    def rage(self, seconds: float) -> None:
        """Break things under load until `seconds` are over, each kind once before any kind comes
        again.
        """
        deadline = time.monotonic() + seconds
        with self._load:
            while time.monotonic() < deadline and not self.stuck:
                for name in self._chance.sample(sorted(self._faults), len(self._faults)):
                    if time.monotonic() < deadline and not self.stuck:
                        self._strike(name)

    def _strike(self, name: str) -> None:
        if self._faults[name] == self._fail_over and time.monotonic() < self._next_failover:
            return
        self._inject_poison()
        started = time.monotonic()
        self._faults[name]()
        try:
            self._recover()
        except AssertionError:
            # The table still comes, and what is missing in it counts as lost.
            print(f"{name}: not recovered after {SETTLE_SECONDS:.0f} s", flush=True)
            self.stuck = True
        self._recoveries[name].append(time.monotonic() - started)
        if not self.stuck:
            print(f"{name}: recovered after {self._recoveries[name][-1]:.1f} s", flush=True)
        time.sleep(self._chance.uniform(0, 2))

    def _recover(self) -> None:
        """Wait until a write is accepted and all that was accepted until then has its effect."""
        before = self._network.events.copy()
        wait_until(lambda: self._network.events - before, SETTLE_SECONDS)
        accepted = self._network.events.copy()
        wait_until(lambda: settled_everywhere(accepted), SETTLE_SECONDS)

    def _inject_poison(self) -> None:
        value = f"no event {uuid4()}".encode()
        key = envelope.encode_key(self._chance.choice(self._network.authors))
        try:
            producer.publish_record(kafka.FEED_EVENTS, key, value)
        except PublishFailed:
            return  # it may be there or not, so it cannot be counted
        self._poison.append(value)

    def _kill_worker(self) -> None:
        number = self._chance.randrange(WORKERS)
        self._workers[number].kill()
        self._workers[number] = self._new_worker(number)

    def _new_worker(self, number: int) -> Process:
        return self._system.worker(FEED_CELL=self._cell_of_worker[number])

    def _new_store(self, cell: str) -> Process:
        return self._system.command("run_dlq", FEED_CELL=cell)

    def _kill_worker_at_a_point(self) -> None:
        number, point = self._chance.randrange(WORKERS), self._chance.choice(DEADLY)
        marker = self._system.directory / f"died-{time.monotonic_ns()}"
        self._workers[number].kill()
        victim = self._system.command(
            "-m",
            "tests.crash.die_at",
            point,
            str(marker),
            "run_fanout",
            script="-u",
            FEED_CELL=self._cell_of_worker[number],
        )
        wait = time.monotonic() + 10
        while victim.running() and time.monotonic() < wait:  # it may never get to its point
            time.sleep(0.05)
        if victim.running():
            victim.kill()
        self._workers[number] = self._new_worker(number)

    def _freeze_worker(self) -> None:
        process = self._chance.choice(self._workers).popen
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(1, 8))
        process.send_signal(signal.SIGCONT)

    def _kill_store(self) -> None:
        cell = self._chance.choice(sorted(self._stores))
        self._stores[cell].kill()
        self._stores[cell] = self._new_store(cell)

    def _kill_api(self) -> None:
        self._api.kill()
        self._api = self._system.api()

    def _fail_over(self) -> None:
        """Make the primary a standby, and one the primary that lacks what was written in the last
        seconds.

        Every 202 counts, for Kafka has it: also those of which the new primary has never heard.
        """
        self._next_failover = time.monotonic() + BETWEEN_FAILOVERS_SECONDS
        copy = outages.copy_of_postgres()
        time.sleep(self._chance.uniform(1, 4))
        outages.make_read_only()
        time.sleep(self._chance.uniform(0, 2))
        outages.fail_over_to(copy)

    def _restart(self, end: Callable[[], None], start: Callable[[], None]) -> None:
        end()
        time.sleep(self._chance.uniform(0, 4))
        start()

    def count(self) -> tuple[int, int]:
        """Return how many effects were lost and how many are there too often, once all has
        settled.
        """
        with suppress(AssertionError):  # what does not settle is counted as lost
            wait_until(self._all_is_well, SETTLE_SECONDS)
        found = self._network.differences()
        lost, doubled = found.lost, found.doubled
        for cell in cells.every().values():
            stored = Counter(self._dead_letters(cell))
            lost += len(set(self._poison) - set(stored))
            doubled += stored.total() - len(stored)
        return lost, doubled

    def _all_is_well(self) -> bool:
        return (
            settled_everywhere(self._network.events)
            and self._all_poison_is_stored()
            and self._network.differences() == Differences(0, 0)
        )

    def _all_poison_is_stored(self) -> bool:
        """Each cell has dead letters of its own."""
        every = cells.every().values()
        return all(set(self._poison) <= set(self._dead_letters(cell)) for cell in every)

    def _dead_letters(self, cell: Cell) -> list[bytes]:
        with cells.on(cell):
            return [
                bytes(letter.value or b"")
                for letter in DeadLetter.objects.filter(value__in=self._poison)
            ]

    def tell(self, lost: int, doubled: int) -> None:
        print(f"\n{'fault':<40}{'times':>6}{'median s':>10}{'max s':>8}   to recover")
        for name, seconds in sorted(self._recoveries.items()):
            print(
                f"{name:<40}{len(seconds):>6}{statistics.median(seconds):>10.1f}{max(seconds):>8.1f}"
            )
        every = [seconds for times in self._recoveries.values() for seconds in times]
        crashes = sum(
            len(times) for name, times in self._recoveries.items() if name.startswith(PROCESSES)
        )
        figures = {
            "crashes and freezes of processes": crashes,
            "restarts of servers": len(every) - crashes,
            "writes accepted": len(self._network.events),
            "posts among them": self._load.posts,
            "requests refused or cut off": self._load.refused,
            "dead letters": len(self._poison),
            "partitions of feeds made": int(partitions()[-1].name.rpartition("_")[2]),
            "lost": lost,
            "doubled": doubled,
        }
        print()
        for name, figure in figures.items():
            print(f"{name:<40}{figure:>6}")
        if every:
            print(
                f"{'time to recover':<40}{statistics.median(every):>6.1f} s in the median, {max(every):.1f} s at most"
            )
