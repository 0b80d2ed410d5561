"""The least that could answer: a WSGI application without Django, for the same server and command line.

GET returns a ready page of `PAGE_BYTES` bytes. POST publishes its body with the production producer's settings and
answers once Kafka has acknowledged it.
"""

import os
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from eventbus import kafka

TOPIC = "benchmark-limit"
PAGE = b"x" * int(os.environ.get("PAGE_BYTES", "4700"))
HEADERS = [("Content-Type", "application/json")]

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer one request."""
    if environ["REQUEST_METHOD"] == "POST":
        _publish(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        return _answer(start_response, "202 Accepted", b"{}")
    return _answer(start_response, "200 OK", PAGE)


def _answer(start_response: StartResponse, status: str, body: bytes) -> Iterable[bytes]:
    start_response(status, [*HEADERS, ("Content-Length", str(len(body)))])
    return [body]


def _publish(value: bytes) -> None:
    reported, errors = threading.Event(), []

    def report(error: KafkaError | None, _message: Message) -> None:
        errors.append(error)
        reported.set()

    _producer().produce(TOPIC, value=value, on_delivery=report)
    reported.wait()
    if errors[0]:
        raise KafkaException(errors[0])


@cache
def _producer() -> Producer:
    producer = Producer(kafka.producer_config())
    threading.Thread(target=_poll, args=(producer,), daemon=True).start()
    return producer


def _poll(producer: Producer) -> None:
    while True:
        producer.poll(0.2)
