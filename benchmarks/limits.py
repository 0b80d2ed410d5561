"""The least that could answer: an RSGI application without Django, for the same server and command
line.

GET returns a ready page of `PAGE_BYTES` bytes. POST publishes a record as large as an event, with
the production producer's settings and spread over the partitions like the posts of many authors,
and answers once Kafka has acknowledged it: many at a time, without a thread for any.
"""

import asyncio
import os
import random
import threading
from functools import partial

from confluent_kafka import KafkaError, Message, Producer

from eventbus import kafka
from feedsite.front.http import Connection, Scope

TOPIC = "benchmark-limit"
PAGE = b"x" * int(os.environ.get("PAGE_BYTES", "4700"))
AUTHORS = 50
ENVELOPE = b" " * 200
HEADERS = [("content-type", "application/json")]

Future = asyncio.Future[None]


class Application:
    """Answers requests on one event loop."""

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reported: list[tuple[Future, KafkaError | None]] = []
        self._producer = Producer(kafka.producer_config())
        threading.Thread(target=self._poll, daemon=True).start()

    async def __rsgi__(self, scope: Scope, connection: Connection) -> None:
        """Answer one request."""
        if scope.method != "POST":
            connection.response_bytes(200, HEADERS, PAGE)
            return
        delivered = self._loop.create_future()
        body = await connection()
        author = b"%d" % random.randrange(AUTHORS)
        self._producer.produce(
            TOPIC, body + ENVELOPE, author, on_delivery=partial(self._report, delivered)
        )
        await delivered
        connection.response_bytes(202, HEADERS, b"{}")

    def _report(self, delivered: Future, error: KafkaError | None, _message: Message) -> None:
        self._reported.append((delivered, error))

    def _poll(self) -> None:
        while True:
            self._producer.poll(0.2)
            reported, self._reported = self._reported, []
            if reported:
                self._loop.call_soon_threadsafe(self._settle, reported)

    def _settle(self, reported: list[tuple[Future, KafkaError | None]]) -> None:
        for delivered, error in reported:
            if error is None:
                delivered.set_result(None)
            else:
                delivered.set_exception(RuntimeError(error.str()))


application = Application()
