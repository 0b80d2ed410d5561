"""Threads of an API process that ask the servers, so that neither its event loop nor its requests have to."""

import threading
import time
from collections.abc import Callable

import structlog
from confluent_kafka import KafkaException
from django.db import Error as DatabaseFailure
from django.db import connection
from redis import RedisError

from eventbus import kafka, node_lease, producer
from eventbus.breaker import KAFKA, REDIS
from eventbus.exceptions import IdsUnavailable
from eventbus.health import OK, Health
from eventbus.sql import fetch
from feeds import cache
from feedsite.postgresql.connection import answer_within

ERA_EVERY_SECONDS = 0.25
# With the pause less than the second for which an era is trusted: a PostgreSQL that stands still is taken to be away
# before anyone would have to wait for it.
ERA_ANSWER_SECONDS = 0.6
WATCH_EVERY_SECONDS = 1.0
WATCH_ANSWER_SECONDS = 1.0
KAFKA_ANSWER_SECONDS = 2.0
LEASE_EVERY_SECONDS = 2.0
# An answer older than this says nothing about now.
FRESH_SECONDS = 8.0

log = structlog.get_logger(__name__)


class Watch:
    """What one server last said when a thread of its own asked it whether this process can use it."""

    def __init__(self, server: str, ask: Callable[[], str]) -> None:
        self._server = server
        self._ask = ask
        self._state = "not asked yet"
        self._told_at = time.monotonic()

    def start(self) -> None:
        threading.Thread(target=self._keep_asking, name=f"watch-{self._server}", daemon=True).start()

    def state(self) -> str:
        """Return `OK`, or what is wrong."""
        age = time.monotonic() - self._told_at
        if age > FRESH_SECONDS:
            return f"no answer for {age:.0f} s"
        return self._state

    def _keep_asking(self) -> None:
        while True:
            self._state = self._ask()
            self._told_at = time.monotonic()
            time.sleep(WATCH_EVERY_SECONDS)


def readiness() -> Health:
    """Tell at once whether this process can read and write. Redis may be away: reads then come from PostgreSQL."""
    redis = _state_of_redis()
    found = {"postgresql": POSTGRESQL_WATCH.state(), "kafka": KAFKA_WATCH.state(), "redis": redis}
    good = found["postgresql"] == OK and found["kafka"] == OK
    return Health(good, "".join(f"{name}: {state}\n" for name, state in found.items()))


def start() -> None:
    """Start all of them; to be called once a process."""
    POSTGRESQL_WATCH.start()
    KAFKA_WATCH.start()
    threading.Thread(target=_keep_era, name="cache-era", daemon=True).start()
    threading.Thread(target=_lease_node, name="first-snowflake-lease", daemon=True).start()


def _ask_postgresql() -> str:
    try:
        with answer_within(WATCH_ANSWER_SECONDS):
            [(is_standby,)] = fetch("SELECT pg_is_in_recovery()", {})
    except DatabaseFailure as error:
        return f"unreachable ({type(error).__name__})"
    finally:
        connection.close()
    return "a standby, which cannot be written to" if is_standby else OK


def _ask_kafka() -> str:
    """Ask on the connections that posts go by, so that a producer that cannot be used any more is no `OK`."""
    if KAFKA.is_open:
        return "does not acknowledge what is written"
    try:
        topics = producer.get().topics(KAFKA_ANSWER_SECONDS)
    except KafkaException as error:
        return f"unreachable ({error.args[0].name()})"
    if kafka.FEED_EVENTS not in topics:
        return f"has no topic {kafka.FEED_EVENTS}: run manage.py create_topics"
    return OK


def _state_of_redis() -> str:
    return "degraded, unreachable" if REDIS.is_open else OK


POSTGRESQL_WATCH = Watch("postgresql", _ask_postgresql)
KAFKA_WATCH = Watch("kafka", _ask_kafka)


def _keep_era() -> None:
    while True:
        try:
            with answer_within(ERA_ANSWER_SECONDS):
                cache.refresh_era()
        except RedisError as error:
            log.debug("era_not_refreshed", error=str(error))
        finally:
            connection.close()
        time.sleep(ERA_EVERY_SECONDS)


def _lease_node() -> None:
    """Lease a snowflake node as soon as PostgreSQL can be reached; from then on the lease renews itself."""
    while True:
        try:
            with answer_within(LEASE_EVERY_SECONDS):
                node_lease.next_id()
            return
        except IdsUnavailable as error:
            log.debug("no_snowflake_node_yet", error=str(error))
        finally:
            connection.close()
        time.sleep(LEASE_EVERY_SECONDS)
