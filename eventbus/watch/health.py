"""Whether this process can do its work: what `/healthz` and `/readyz` say, on the API and on each
worker.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from django.conf import settings
from django.db import DatabaseError
from redis import RedisError

from eventbus import kafka
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


def dependencies() -> Health:
    """Ask all servers, and return whether PostgreSQL and Kafka can be used."""
    return summary({"postgresql": postgresql(), "kafka": kafka_brokers(), "redis": redis()})


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
