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
    postgres, kafka_state, redis = _state(_ask_postgres), _state(_ask_kafka), _state(_ask_redis)
    text = f"postgresql: {postgres}\nkafka: {kafka_state}\nredis: {redis if redis == OK else f'degraded, {redis}'}\n"
    return Health(postgres == kafka_state == OK, text)


def _state(ask: Callable[[], None]) -> str:
    try:
        ask()
    except (DatabaseError, KafkaException, RedisError) as error:
        return f"unreachable ({type(error).__name__})"
    return OK


def _ask_postgres() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _ask_redis() -> None:
    get_redis_connection("default").ping()


def _ask_kafka() -> None:
    topics = AdminClient(kafka.client_config()).list_topics(timeout=KAFKA_SECONDS).topics
    if kafka.FEED_EVENTS not in topics:
        raise KafkaException(f"no topic {kafka.FEED_EVENTS}: run manage.py create_topics")
