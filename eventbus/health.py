"""Whether this process can do its work: what `/healthz` and `/readyz` say, on the API and on each worker."""

from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from django.db import DatabaseError, connection
from django_redis import get_redis_connection
from redis import RedisError

from eventbus import kafka

KAFKA_SECONDS = 2.0
OK = "ok"


@dataclass(frozen=True, slots=True)
class Health:
    """The answer to a probe: 200 or 503, with a line for each thing looked at."""

    good: bool
    text: str

    @property
    def status(self) -> int:
        return 200 if self.good else 503


ALIVE = Health(True, "ok\n")


def dependencies() -> Health:
    """Return whether PostgreSQL and Kafka can be used. Redis may be away: reads then come from PostgreSQL."""
    found = {"postgresql": postgresql(), "kafka": kafka_brokers(), "redis": redis()}
    good = found["postgresql"] == found["kafka"] == OK
    if found["redis"] != OK:
        found["redis"] = f"degraded, {found['redis']}"
    return Health(good, "".join(f"{name}: {state}\n" for name, state in found.items()))


def postgresql() -> str:
    """Return `OK`, or what is wrong."""
    return _state(_ask_postgresql)


def kafka_brokers() -> str:
    """Return `OK`, or what is wrong."""
    return _state(_ask_kafka)


def redis() -> str:
    """Return `OK`, or what is wrong."""
    return _state(get_redis_connection("default").ping)


def _state(ask: Callable[[], object]) -> str:
    try:
        ask()
    except (DatabaseError, KafkaException, RedisError) as error:
        return f"unreachable ({type(error).__name__})"
    return OK


def _ask_postgresql() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _ask_kafka() -> None:
    topics = AdminClient(kafka.client_config()).list_topics(timeout=KAFKA_SECONDS).topics
    if kafka.FEED_EVENTS not in topics:
        raise KafkaException(f"no topic {kafka.FEED_EVENTS}: run manage.py create_topics")
