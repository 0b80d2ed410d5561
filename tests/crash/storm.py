"""What `tests.crash.chaos` does to the system, and what it counts afterwards."""

import random
import signal
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from django.core.management import call_command

from eventbus import envelope, kafka, producer
from eventbus.exceptions import PublishFailed
from eventbus.ids import node_lease
from eventbus.models import DeadLetter
from feeds.partitions import partitions
from tests.crash import network as networks
from tests.crash import outages
from tests.crash.die_at import POINTS
from tests.crash.load import Load
from tests.crash.network import Differences, Network
from tests.crash.outages import Stoppable
from tests.e2e.system import System, running, settled, wait_until

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
    call_command("migrate", verbosity=0)
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
        self._workers = [system.worker() for _ in range(WORKERS)]
        self._store = system.command("run_dlq")
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
        wait_until(lambda: settled(accepted), SETTLE_SECONDS)

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
        self._workers[number] = self._system.worker()

    def _kill_worker_at_a_point(self) -> None:
        number, point = self._chance.randrange(WORKERS), self._chance.choice(DEADLY)
        marker = self._system.directory / f"died-{time.monotonic_ns()}"
        self._workers[number].kill()
        victim = self._system.command(
            "-m", "tests.crash.die_at", point, str(marker), "run_fanout", script="-u"
        )
        wait = time.monotonic() + 10
        while victim.running() and time.monotonic() < wait:  # it may never get to its point
            time.sleep(0.05)
        if victim.running():
            victim.kill()
        self._workers[number] = self._system.worker()

    def _freeze_worker(self) -> None:
        process = self._chance.choice(self._workers).popen
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(1, 8))
        process.send_signal(signal.SIGCONT)

    def _kill_store(self) -> None:
        self._store.kill()
        self._store = self._system.command("run_dlq")

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
        stored = Counter(self._dead_letters())
        lost = found.lost + len(set(self._poison) - set(stored))
        return lost, found.doubled + stored.total() - len(stored)

    def _all_is_well(self) -> bool:
        return (
            settled(self._network.events)
            and set(self._poison) <= set(self._dead_letters())
            and self._network.differences() == Differences(0, 0)
        )

    def _dead_letters(self) -> list[bytes]:
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
