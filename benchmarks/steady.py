"""Steady state: as many entries come as go, with partitions, for many turns.

Nothing may grow or slow down meanwhile.

A turn is the time in which a partition fills; after `PARTITIONS` of them all entries are other
ones. Posts, deletions, follows and unfollows take the path of a worker; a reader and the
housekeeper go on beside them.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connection, transaction
from django.test.utils import override_settings

from benchmarks import database, layout, tables, workload
from benchmarks.stand import Stand
from benchmarks.tables import progress
from benchmarks.workload import Network
from eventbus import envelope, kafka
from eventbus.ids import node_lease
from eventbus.record import Record
from feeds import handlers, housekeeping, partitions, verification
from feeds.events import UserFollowed, UserUnfollowed
from feeds.timeline import Reader
from posts.events import PostCreated, PostDeleted
from posts.pagination import DEFAULT_LIMIT, START

PARTITIONS = 8
FOLLOWERS = 99
AUTHORS = 1_000  # below the ids of the readers: nobody follows themselves
USERS = 20_000
SHORTEST_TURN_SECONDS = 5.0
# What a worker surely writes beside the reader and the walk: a turn is as long as its rows take.
ROWS_A_SECOND = 125_000
POSTS_A_BATCH = 500
CHANGES_A_BATCH = 5  # deletions, follows and unfollows, of each
WALK_PAUSE = 0.05

_BYTES = "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'feed_entries'::regclass"
_ROWS = "SELECT count(*) FROM feed_entries"


@dataclass
class Turn:
    """What was measured in a part of the time."""

    rows: int = 0
    busy: float = 0.0  # seconds in which the worker had something to do
    feeds_walked: int = 0
    walking: float = 0.0  # seconds
    reads: list[float] = field(default_factory=list)


def run(stand: Stand, quick: bool) -> None:
    """Measure with 10^5 and with more than 10^7 entries in all partitions; verify each at the
    end.
    """
    turns = (2 if quick else 5) * PARTITIONS
    network = workload.even_network(FOLLOWERS, AUTHORS, USERS)
    head = ["turns", "partitions", "entries", "MB", "rows/s", "feeds walked/s"]
    head += ["page p50 ms", "p99", "max"]
    for entries in (10**5, 10**6) if quick else (10**5, 12 * 10**6):
        workload.load(network)
        layout.lay_out(hours=[0])
        rows_a_turn = entries // PARTITIONS
        seconds = max(SHORTEST_TURN_SECONDS, rows_a_turn / ROWS_A_SECOND)
        with _small_partitions(rows_a_turn, seconds):
            rows = Steady(network, rows_a_turn, seconds).run(turns)
        tables.table(
            f"Steady state with about {entries:,} entries, {turns} turns of {PARTITIONS} partitions",
            head,
            rows,
        )
        _verify()
    layout.lay_out()


@contextmanager
def _small_partitions(rows: int, seconds: float) -> Iterator[None]:
    """Have partitions of seconds instead of hours, so that many turns fit into minutes."""
    kept = {
        name: getattr(partitions, name) for name in ("FIRST_MS", "SHORTEST_MS", "CHECK_SECONDS")
    }
    partitions.FIRST_MS = partitions.SHORTEST_MS = int(seconds * 1_000)
    partitions.CHECK_SECONDS = 0.5
    try:
        with (
            override_settings(FEED_PARTITION_ROWS=rows, FEED_PARTITIONS=PARTITIONS),
            partitions.kept(),
        ):
            yield
    finally:
        for name, value in kept.items():
            setattr(partitions, name, value)


class Steady:
    """One run: the worker in this thread, a reader and a walk each in another."""

    def __init__(self, network: Network, rows_a_turn: int, seconds: float) -> None:
        self._network = network
        self._rows_a_turn = rows_a_turn
        self._seconds = seconds
        self._dice = random.Random(7)
        self._posts: deque[tuple[int, int]] = deque(maxlen=100_000)  # post, author
        self._turn = Turn()
        self._stopped = threading.Event()

    def run(self, turns: int) -> list[list[tables.Cell]]:
        """Return a line of figures for each eighth of the time."""
        threads = [
            threading.Thread(target=self._in_a_thread, args=[act])
            for act in (self._read, self._walk)
        ]
        for thread in threads:
            thread.start()
        lines = []
        try:
            for first in range(0, turns, turns // 8):
                progress(f"steady: turn {first} of {turns}")
                self._turn = Turn()
                for _ in range(turns // 8):
                    self._work()
                lines.append([f"{first + 1} to {first + turns // 8}", *self._figures(self._turn)])
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
        return lines

    def _work(self) -> None:
        """Write a partition's worth of rows, and rest until its time is over."""
        ends, rows = time.monotonic() + self._seconds, 0
        while rows < self._rows_a_turn and time.monotonic() < ends:
            posts = min(POSTS_A_BATCH, (self._rows_a_turn - rows) // (FOLLOWERS + 1) + 1)
            batch = self._batch(posts)
            self._turn.busy += workload.process(handlers.subscription(), [batch])
            self._turn.rows += posts * (FOLLOWERS + 1)
            rows += posts * (FOLLOWERS + 1)
        time.sleep(max(0.0, ends - time.monotonic()))

    def _batch(self, posts: int) -> list[Record]:
        records = workload.records(self._dice.choices(self._network.authors, k=posts))
        facts: list[Any] = []
        for _ in range(CHANGES_A_BATCH):
            if self._posts:
                gone, author = self._dice.choice(self._posts)
                facts.append(
                    PostDeleted(event_id=node_lease.next_id(), post_id=gone, author_id=author)
                )
            follower, followee = self._dice.choice(self._network.follows)
            facts.append(UserUnfollowed(node_lease.next_id(), follower, followee))
            follower, followee = self._dice.choice(self._network.follows)
            facts.append(UserFollowed(node_lease.next_id(), follower, followee))
        for record in records:
            fact = handlers.FeedHandlers().to_fact(envelope.decode(record.value, record.key))
            if isinstance(fact, PostCreated):
                self._posts.append((fact.post_id, fact.author_id))
        return records + [_record(fact, posts + n) for n, fact in enumerate(facts)]

    def _in_a_thread(self, act: Any) -> None:
        try:
            while not self._stopped.is_set():
                act()
        finally:
            connection.close()

    def _read(self) -> None:
        """Read the first page of anybody's feed, as if it were not cached."""
        user = self._dice.choice(self._network.follows)[0]
        started = time.perf_counter()
        Reader(user).read(START, DEFAULT_LIMIT + 1)
        self._turn.reads.append(time.perf_counter() - started)
        self._stopped.wait(0.005)

    def _walk(self) -> None:
        """Take a step of the walk, from anywhere."""
        started = time.perf_counter()
        with transaction.atomic():
            users = housekeeping._lock_next(1_000 + self._dice.randrange(USERS))
            housekeeping.put_to_rest(users)
        self._turn.walking += time.perf_counter() - started
        self._turn.feeds_walked += len(users)
        self._stopped.wait(WALK_PAUSE)

    def _figures(self, turn: Turn) -> Sequence[tables.Cell]:
        reads = [seconds * 1_000 for seconds in turn.reads]
        begun = partitions.layout().begun
        return [
            str(len(begun)),
            sum(partition.rows for partition in begun),
            float(database.value(_BYTES)) / 1e6,
            turn.rows / turn.busy,
            turn.feeds_walked / turn.walking,
            *(tables.percentile(reads, percent) for percent in (50, 99)),
            max(reads),
        ]


def _record(fact: Any, offset: int) -> Record:
    event = fact.to_event()
    return Record(
        kafka.FEED_EVENTS, 0, offset, envelope.encode_key(event.key), envelope.encode(event), (), 0
    )


def _verify() -> None:
    progress("steady: verifying")
    report = verification.verify()
    found = "no difference" if report.equal else f"{report}"
    tables.note(
        f"verify_feeds: {report.entries:,} entries, of {database.value(_ROWS):,} rows; {found}."
    )
