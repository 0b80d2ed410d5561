"""Liveness and readiness."""

from collections.abc import Callable

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse
from django_redis import get_redis_connection
from redis import RedisError

from eventbus import kafka

KAFKA_SECONDS = 2.0


def healthz(_request: HttpRequest) -> HttpResponse:
    """Answer that the process lives; asks nobody else."""
    return HttpResponse("ok\n", content_type="text/plain")


def readyz(_request: HttpRequest) -> HttpResponse:
    """Answer 200 when PostgreSQL and Kafka can be used, else 503, with a line a dependency.

    Redis may be away: reads then come from PostgreSQL.
    """
    postgres, kafka_state, redis = _state(_ask_postgres), _state(_ask_kafka), _state(_ask_redis)
    body = f"postgresql: {postgres}\nkafka: {kafka_state}\nredis: {redis if redis == 'ok' else f'degraded, {redis}'}\n"
    ready = postgres == kafka_state == "ok"
    return HttpResponse(body, content_type="text/plain", status=200 if ready else 503)


def _state(ask: Callable[[], None]) -> str:
    try:
        ask()
    except (DatabaseError, KafkaException, RedisError) as error:
        return f"unreachable ({type(error).__name__})"
    return "ok"


def _ask_postgres() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _ask_redis() -> None:
    get_redis_connection("default").ping()


def _ask_kafka() -> None:
    topics = AdminClient(kafka.client_config()).list_topics(timeout=KAFKA_SECONDS).topics
    if kafka.FEED_EVENTS not in topics:
        raise KafkaException(f"no topic {kafka.FEED_EVENTS}: run manage.py create_topics")
