"""Threads of an API process that ask the servers, so that neither its event loop nor its requests
have to.
"""

import math
import threading
import time
from collections.abc import Callable

import structlog
from confluent_kafka import KafkaException
from django.conf import settings
from django.db import Error as DatabaseFailure

from eventbus import breaker, cells, kafka, producer, topics
from eventbus.breaker import KAFKA
from eventbus.cells import Cell
from eventbus.database.current import connection
from eventbus.database.deadline import answer_within
from eventbus.database.sql import fetch
from eventbus.ids import node_lease
from eventbus.watch import health
from eventbus.watch.health import OK, Health, Servers, Watch
from feeds.read import here

ERA_EVERY_SECONDS = 0.25
# With the pause less than the second for which an era is trusted: a PostgreSQL that stands still is
# taken to be away before anyone would have to wait for it.
ERA_ANSWER_SECONDS = 0.6
WATCH_EVERY_SECONDS = 1.0
WATCH_ANSWER_SECONDS = 1.0
KAFKA_ANSWER_SECONDS = 2.0
CHECK_EVERY_SECONDS = 30.0
TRIED_WITHIN_SECONDS = 10.0

log = structlog.get_logger(__name__)


class Keeper(threading.Thread):
    """A thread that does one thing again and again until it is stopped, on one cell, and holds no
    connection in between.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[], object],
        every_seconds: float,
        cell: Cell | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._cell = cell or cells.own()
        self._act = act
        self._every_seconds = every_seconds
        self._stopped = threading.Event()

    def run(self) -> None:
        with cells.on(self._cell):
            while not self._stopped.is_set():
                try:
                    self._act()
                except Exception:
                    log.exception("keeper_failed", keeper=self.name)
                finally:
                    connection.close()
                self._stopped.wait(self._every_seconds)

    def stop(self) -> None:
        """Have the thread end after what it is about."""
        self._stopped.set()


class Keepers:
    """The threads of one API process."""

    def __init__(self) -> None:
        self._kafka = Watch("kafka", KafkaQuestion().ask)
        self._of_cells = {name: CellKeepers(cell) for name, cell in cells.every().items()}
        self._threads = [Keeper("watch-kafka", self._kafka.look, WATCH_EVERY_SECONDS)]
        if settings.FEED_CELLS_FILE is not None:
            self._threads.append(Keeper("cell-map", cells.refresh, WATCH_EVERY_SECONDS))
        for of_cell in self._of_cells.values():
            self._threads += of_cell.threads

    def start(self) -> None:
        """Begin; until the topics have been looked at, nothing is published to them."""
        if not settings.KAFKA_UNSAFE_TOPICS:
            producer.await_check()
        node_lease.keep()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, which takes as long as what they are about."""
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join(KAFKA_ANSWER_SECONDS)

    def readiness(self) -> Health:
        """Tell at once whether this process can write, and read for the readers of a cell."""
        found = {name: of_cell.servers() for name, of_cell in self._of_cells.items()}
        return health.of_cells(self._kafka.state(), found)


class CellKeepers:
    """Those that ask the servers of one cell."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.postgresql = Watch(cell.named("postgresql"), _ask_postgresql)
        self.threads = [
            Keeper(cell.named("watch-postgresql"), self.postgresql.look, WATCH_EVERY_SECONDS, cell),
            Keeper(cell.named("cache-era"), _refresh_era, ERA_EVERY_SECONDS, cell),
        ]

    def servers(self) -> Servers:
        """Tell how the servers of the cell are."""
        redis = "unreachable" if breaker.of(self._cell).redis.is_open else OK
        return Servers(self._postgresql(), redis)

    def _postgresql(self) -> str:
        state = self.postgresql.state()
        # By name: what a cell serves may have changed since this process started.
        if state != OK or self._cell.name != cells.of_ids().name:
            return state
        # It answers, and still no post can be accepted before it has given a lease.
        trouble = node_lease.keep().trouble()
        return f"gives no ids: {trouble}" if trouble else OK


def _ask_postgresql() -> str:
    try:
        with answer_within(WATCH_ANSWER_SECONDS):
            [(is_standby,)] = fetch("SELECT pg_is_in_recovery()", {})
    except DatabaseFailure as error:
        return f"unreachable ({type(error).__name__})"
    return "a standby, which cannot be written to" if is_standby else OK


class KafkaQuestion:
    """Asks Kafka whether this process can publish, and now and then whether it may."""

    def __init__(self) -> None:
        self._checked_at = -math.inf

    def ask(self) -> str:
        """Ask on the connections that posts go by, so that a producer that cannot be used any more
        is no `OK`.
        """
        # Where nobody has tried for a while, somebody must be sent here to try: a try is what
        # closes the breaker.
        if KAFKA.is_open and KAFKA.failed_within(TRIED_WITHIN_SECONDS):
            return "does not acknowledge what is written"
        try:
            known = producer.get().topics(KAFKA_ANSWER_SECONDS)
            if kafka.FEED_EVENTS not in known:
                return f"has no topic {kafka.FEED_EVENTS}: run manage.py create_topics"
            self._check_topics()
        except KafkaException as error:
            return f"unreachable ({error.args[0].name()})"
        return producer.forbidden() or OK

    def _check_topics(self) -> None:
        """Forbid to publish to topics on which an acknowledged write may be lost.

        Soon again where nobody may publish: it may have been set right.
        """
        is_fresh = time.monotonic() - self._checked_at < CHECK_EVERY_SECONDS
        if settings.KAFKA_UNSAFE_TOPICS or (is_fresh and not producer.forbidden()):
            return
        producer.forbid(" ".join(topics.promise_broken(KAFKA_ANSWER_SECONDS)))
        self._checked_at = time.monotonic()


def _refresh_era() -> None:
    with answer_within(ERA_ANSWER_SECONDS):
        here.trust.refresh()
