"""Whether this process can do its work: what `/healthz` and `/readyz` say, on the API and on each
worker.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from django.conf import settings
from django.db import DatabaseError
from redis import RedisError

from eventbus import cells, kafka
from eventbus.database import current
from eventbus.database.sql import execute

KAFKA_SECONDS = 2.0
# An answer older than this says nothing about now.
FRESH_SECONDS = 8.0
OK = "ok"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """The answer to a probe: 200 or 503, with a line for each thing looked at."""

    good: bool
    text: str

    @property
    def status(self) -> int:
        return 200 if self.good else 503


ALIVE = Health(True, "ok\n")


class Watch:
    """What one server last said when it was asked whether this process can use it."""

    def __init__(self, server: str, ask: Callable[[], str]) -> None:
        self._server = server
        self._ask = ask
        self._state = "not asked yet"
        self._told_at = time.monotonic()
        self._is_away = False

    def look(self) -> None:
        """Ask, for as long as that takes. The log says when the server goes and when it is back."""
        self._state = self._ask()
        self._told_at = time.monotonic()
        is_away = self._state != OK
        if is_away and not self._is_away:
            log.error("server_is_away", server=self._server, state=self._state)
        elif self._is_away and not is_away:
            log.info("server_is_back", server=self._server)
        self._is_away = is_away

    def state(self) -> str:
        """Return at once `OK`, or what is wrong."""
        age = time.monotonic() - self._told_at
        if age > FRESH_SECONDS:
            return f"no answer for {age:.0f} s"
        return self._state


class Servers(NamedTuple):
    """How the servers are that a cell has for itself."""

    postgresql: str
    redis: str


def dependencies() -> Health:
    """Ask the servers of all cells, and return what `of_cells` makes of it."""
    found: dict[str, Servers] = {}
    for cell in cells.every().values():
        with cells.on(cell):
            found[cell.name] = Servers(postgresql(), redis())
    return of_cells(kafka_brokers(), found)


def of_cells(kafka_state: str, found: Mapping[str, Servers]) -> Health:
    """Return whether Kafka can be used, and PostgreSQL in one cell at least.

    A cell that is away is so for all processes: if they were not ready for it, the readers of all
    others would go with it. Redis may be away: reads then come from PostgreSQL.
    """
    every = cells.every()
    lines = {every[name].named("postgresql"): one.postgresql for name, one in found.items()}
    lines["kafka"] = kafka_state
    for name, one in found.items():
        redis_state = OK if one.redis == OK else f"degraded, {one.redis}"
        lines[every[name].named("redis")] = redis_state
    good = kafka_state == OK and any(one.postgresql == OK for one in found.values())
    return Health(good, "".join(f"{name}: {state}\n" for name, state in lines.items()))


def summary(states: Mapping[str, str]) -> Health:
    """Return whether PostgreSQL and Kafka can be used.

    Redis may be away: reads then come from PostgreSQL.
    """
    good = states["postgresql"] == states["kafka"] == OK
    lines = dict(states)
    if lines["redis"] != OK:
        lines["redis"] = f"degraded, {lines['redis']}"
    return Health(good, "".join(f"{name}: {state}\n" for name, state in lines.items()))


def postgresql() -> str:
    """Return `OK`, or what is wrong."""
    return _state(_ask_postgresql)


def kafka_brokers() -> str:
    """Return `OK`, or what is wrong."""
    return _state(_ask_kafka)


def redis() -> str:
    """Return `OK`, or what is wrong."""
    return _state(current.redis().ping)


def _state(ask: Callable[[], object]) -> str:
    try:
        ask()
    except (DatabaseError, KafkaException, RedisError) as error:
        return f"unreachable ({type(error).__name__})"
    return OK


def _ask_postgresql() -> None:
    execute("SELECT 1")


def _ask_kafka() -> None:
    topics = (
        _admin_client(settings.KAFKA_BOOTSTRAP_SERVERS).list_topics(timeout=KAFKA_SECONDS).topics
    )
    if kafka.FEED_EVENTS not in topics:
        raise KafkaException(f"no topic {kafka.FEED_EVENTS}: run manage.py create_topics")


@cache
def _admin_client(_servers: str) -> AdminClient:
    # Kept, because a client is threads and connections of its own.
    return AdminClient(kafka.client_config())
