"""The API's init container waits for migrations, and not for a PostgreSQL that is away."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db.migrations.recorder import MigrationRecorder

from feedsite.embedded.processes import free_port
from tests.e2e.system import Process, environment, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

COMMAND = [sys.executable, "-m", "feedsite.wait_for_migrations", "1"]
PATIENCE = 60.0  # seconds


@contextmanager
def silent_server() -> Iterator[int]:
    """Take connections at a port, as a server that stands still does, and say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def start_with(port: int) -> str:
    """Return what the container says, told to use a PostgreSQL at `port`, when it has come to its
    end.
    """
    variables = environment() | {"DATABASE_URL": f"postgresql://feed:feed@127.0.0.1:{port}/feed"}
    run = subprocess.run(
        COMMAND, env=variables, check=True, capture_output=True, text=True, timeout=PATIENCE
    )
    return run.stderr


def test_with_all_migrations_applied_it_does_not_wait(tmp_path: Path) -> None:
    process = Process("wait", COMMAND, tmp_path)
    assert process.popen.wait(PATIENCE) == 0
    assert "migrations_applied" in process.log.read_text()


def test_it_waits_for_a_migration_longer_than_for_postgresql(tmp_path: Path) -> None:
    last = MigrationRecorder.Migration.objects.filter(app="feeds").latest("id")
    MigrationRecorder.Migration.objects.filter(pk=last.pk).delete()
    process = Process("wait", COMMAND, tmp_path)
    try:
        wait_until(lambda: process.log.read_text().count("migrations_missing") >= 2)
        assert process.running()
    finally:
        last.save(force_insert=True)
    assert process.popen.wait(PATIENCE) == 0
    assert "migrations_applied" in process.log.read_text()


def test_a_postgresql_that_is_gone_does_not_hold_an_api_process_back() -> None:
    assert "migrations_not_looked_at" in start_with(free_port())


def test_a_postgresql_that_stands_still_does_not_hold_an_api_process_back() -> None:
    with silent_server() as port:
        assert "migrations_not_looked_at" in start_with(port)
