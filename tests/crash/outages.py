"""Servers that go away and come back."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from django.db import connections

from eventbus import producer
from feedsite.embedded import stack, state
from feedsite.embedded.kafka import KAFKA
from feedsite.embedded.postgres import POSTGRES, USER
from feedsite.embedded.processes import Server, end
from feedsite.embedded.valkey import VALKEY

Act = Callable[[], None]

READ_ONLY = "default_transaction_read_only = on\n"

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
    directory: Path | None = None  # of another cell; else that of the stack that all use

    def stop(self) -> None:
        """Stop the server as an administrator does, its clients' connections broken."""
        self._end(self.server.stop_signal)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def start(self) -> None:
        """Start the server where it was and return once it answers."""
        stack.start(self.directory or data_dir(), say=lambda line: None)
        # Else our pools wait ever longer before they try again.
        connections.close_all()
        for each in connections.all():
            each.close_pool()  # type: ignore[attr-defined]

    def _end(self, number: signal.Signals) -> None:
        record = state.read(self.directory or data_dir())[self.server.variable]
        end(record.pid, self.server.program, record.port, number)


def data_dir() -> Path:
    return Path(os.environ["FEED_DATA_DIR"])


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Have the server, with all its processes, stand still: connections stay, and nothing
    answers.
    """
    leader = psutil.Process(state.read(data_dir())[server.variable].pid)
    leader.send_signal(signal.SIGSTOP)  # first, so that it has no child that is not found
    family = [leader, *leader.children(recursive=True)]
    try:
        _send(signal.SIGSTOP, family[1:])
        yield
    finally:
        _send(signal.SIGCONT, family)


def _send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        # A child may have been about to end by itself.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def copy_of_postgres() -> Path:
    """Return a copy of PostgreSQL's data of this moment: what a standby has that hears nothing from
    now on.
    """
    cluster = _cluster()
    copy = cluster.with_suffix(".copy")
    shutil.rmtree(copy, ignore_errors=True)
    with frozen(POSTGRES):
        shutil.copytree(cluster, copy, symlinks=True)
    for path in (copy, *copy.rglob("*")):
        if USER:
            shutil.chown(path, USER)
    # Else the copy would take the server that it was made of for one of its own that has crashed.
    (copy / "postmaster.pid").unlink(missing_ok=True)
    return copy


def fail_over_to(copy: Path) -> None:
    """Have PostgreSQL go on from `copy`, at the same address, by a recovery that begins a new
    timeline.
    """
    postgres.kill()
    cluster = _cluster()
    shutil.rmtree(cluster)
    copy.rename(cluster)
    with (cluster / "postgresql.auto.conf").open("a") as settings:
        settings.write("restore_command = 'false'\n")
    (cluster / "recovery.signal").touch()
    postgres.start()


def make_read_only() -> None:
    """Have all sessions of PostgreSQL only read, also those that exist, as when it is made a
    standby.
    """
    with (_cluster() / "postgresql.auto.conf").open("a") as settings:
        settings.write(READ_ONLY)
    _reload_postgres()


def make_writable() -> None:
    settings = _cluster() / "postgresql.auto.conf"
    settings.write_text(settings.read_text().replace(READ_ONLY, ""))
    _reload_postgres()


def _reload_postgres() -> None:
    os.kill(state.read(data_dir())[POSTGRES.variable].pid, signal.SIGHUP)


def _cluster() -> Path:
    return (data_dir() / "postgres").resolve() / "data"


def renew_embedded_broker() -> None:
    """Have an embedded broker without records, and without the ghosts of members that other tests
    have killed.
    """
    if os.environ.get(KAFKA.variable):
        return  # one from outside, which forgets nothing
    producer.close()
    broker = EmbeddedServer(KAFKA)
    broker.kill()
    broker.start()


postgres = EmbeddedServer(POSTGRES)
valkey = EmbeddedServer(VALKEY)
