"""Watching a worker from a thread of its own, so that one that hangs is seen too: lag, progress and
health.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import structlog
from confluent_kafka import KafkaException
from django.conf import settings

from eventbus import kafka, metrics
from eventbus.background import Repeating
from eventbus.consume.consumer import EventConsumer
from eventbus.watch import health
from eventbus.watch.backlog import Backlog, Standing
from eventbus.watch.health import Health, Watch

INTERVAL_SECONDS = 2.0
JOIN_SECONDS = 2.0
# They have nothing to bring to an end, and all of them may hang.
WATCH_JOIN_SECONDS = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Records of a partition of ours wait since then: nothing was committed in between."""

    committed: int
    lag: int
    since: float  # monotonic seconds


class Monitor:
    """Looks at a worker and its servers while `watching`.

    It exports the lag of every group and partition, not only of this worker's: so there is a value
    while a group has no worker, or one that hangs, and it is the same from each process.
    """

    def __init__(self, consumer: EventConsumer) -> None:
        self._consumer = consumer
        self._waiting: dict[int, Waiting] = {}  # by partition of ours
        self._told_at = 0.0
        self._watches = {
            "postgresql": Watch("postgresql", health.postgresql),
            "kafka": Watch("kafka", health.kafka_brokers),
            "redis": Watch("redis", health.redis),
        }
        for name in self._watches:
            metrics.dependency_up.labels(name).set_function(partial(self._is_up, name))
        metrics.worker_stuck_seconds.labels(consumer.group).set_function(self.stuck_seconds)
        metrics.worker_heartbeat_timestamp_seconds.labels(consumer.group).set_function(
            self._heartbeat
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from a thread each: asking a server that is away takes seconds, and must not make
        the rest old.
        """
        backlogs = [Backlog(topic, group) for group, topic in kafka.groups().items()]
        look, close = partial(self._look_at_all, backlogs), partial(_close, backlogs)
        with ExitStack() as threads:
            threads.enter_context(
                Repeating(
                    "lag", look, pause=INTERVAL_SECONDS, at_end=close, join_seconds=JOIN_SECONDS
                )
            )
            for name, watch in self._watches.items():
                threads.enter_context(
                    Repeating(
                        f"watch-{name}",
                        watch.look,
                        pause=INTERVAL_SECONDS,
                        join_seconds=WATCH_JOIN_SECONDS,
                    )
                )
            yield

    def healthz(self) -> Health:
        """Answer that the loop goes round, or waits within the time after which Kafka gives its
        partitions away.
        """
        silent = time.monotonic() - self._consumer.polled_at
        if silent * 1_000 > settings.KAFKA_MAX_POLL_INTERVAL_MS:
            return Health(False, f"hangs: Kafka has not been polled for {silent:.0f} s\n")
        return health.ALIVE

    def readyz(self) -> Health:
        """Answer at once for the dependencies, as the API does, and whether the worker gets on with
        its partitions.
        """
        found = health.summary({name: watch.state() for name, watch in self._watches.items()})
        stuck, lag = self.stuck_seconds(), sum(waiting.lag for waiting in self._waiting.values())
        getting_on = stuck <= settings.WORKER_STUCK_SECONDS
        progress = (
            health.OK
            if getting_on
            else f"stuck, {lag} records wait and none was done for {stuck:.0f} s"
        )
        return Health(found.good and getting_on, f"{found.text}progress: {progress}\n")

    def stuck_seconds(self) -> float:
        """Return for how long a partition of ours has had lag and no commit; 0 when there is
        none.
        """
        now = time.monotonic()
        return max((now - waiting.since for waiting in self._waiting.values()), default=0.0)

    def _heartbeat(self) -> float:
        return time.time() - (time.monotonic() - self._consumer.polled_at)

    def _look_at_all(self, backlogs: Iterable[Backlog]) -> None:
        for backlog in backlogs:
            self._look(backlog)

    def _is_up(self, name: str) -> float:
        return float(self._watches[name].state() == health.OK)

    def _look(self, backlog: Backlog) -> None:
        try:
            standings = backlog.read()
        except KafkaException as error:
            log.warning("lag_unknown", group=backlog.group, error=str(error))
            return
        for number, standing in standings.items():
            metrics.kafka_consumer_lag.labels(backlog.topic, str(number), backlog.group).set(
                standing.lag
            )
        if backlog.group == self._consumer.group:
            self._note_progress(standings)

    def _note_progress(self, standings: Mapping[int, Standing]) -> None:
        now = time.monotonic()
        ours = self._consumer.partitions()
        self._waiting = {
            number: Waiting(at.committed, at.lag, self._since(number, at, now))
            for number, at in standings.items()
            if at.lag and number in ours
        }
        stuck = self.stuck_seconds()
        if (
            stuck > settings.WORKER_STUCK_SECONDS
            and now - self._told_at > settings.WORKER_STUCK_SECONDS
        ):
            self._told_at = now
            log.error("worker_stuck", seconds=round(stuck), partitions=ours)

    def _since(self, number: int, at: Standing, now: float) -> float:
        before = self._waiting.get(number)
        return before.since if before and before.committed == at.committed else now


def _close(backlogs: Iterable[Backlog]) -> None:
    for backlog in backlogs:
        backlog.close()
