"""Servers that go away and come back."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from django.db import connection, connections

from eventbus import producer
from feedsite.embedded import stack, state
from feedsite.embedded.kafka import KAFKA
from feedsite.embedded.postgres import POSTGRES
from feedsite.embedded.processes import Server, end
from feedsite.embedded.valkey import VALKEY

Act = Callable[[], None]

needs_embedded_postgres = pytest.mark.skipif(
    bool(os.environ.get(POSTGRES.variable)),
    reason="stops the embedded PostgreSQL, and an external one is in use",
)

needs_embedded_broker = pytest.mark.skipif(
    bool(os.environ.get(KAFKA.variable)),
    reason="kills the embedded broker, and an external one is in use",
)


class Stoppable(Protocol):
    """What both an embedded server and `tests.kafka.apache.ApacheKafka` are."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


@dataclass(frozen=True)
class EmbeddedServer:
    """One of the embedded servers whose data outlives it; the broker's does not."""

    server: Server

    def stop(self) -> None:
        """Stop the server as an administrator does, its clients' connections broken."""
        self._end(self.server.stop_signal)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def start(self) -> None:
        """Start the server where it was and return once it answers."""
        stack.start(data_dir(), say=lambda line: None)
        # Else our pool waits ever longer before it tries again.
        connections.close_all()
        connection.close_pool()  # type: ignore[attr-defined]

    def _end(self, number: signal.Signals) -> None:
        record = state.read(data_dir())[self.server.variable]
        end(record.pid, self.server.program, record.port, number)


def data_dir() -> Path:
    return Path(os.environ["FEED_DATA_DIR"])


def renew_embedded_broker() -> None:
    """Have an embedded broker without records, and without the ghosts of members that other tests have killed."""
    if os.environ.get(KAFKA.variable):
        return  # one from outside, which forgets nothing
    producer.close()
    broker = EmbeddedServer(KAFKA)
    broker.kill()
    broker.start()


postgres = EmbeddedServer(POSTGRES)
valkey = EmbeddedServer(VALKEY)
