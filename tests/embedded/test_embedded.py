"""The embedded servers, on a second stack beside the one that the other tests use."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from feedsite.embedded import addresses, stack, state
from feedsite.embedded.processes import EmbeddedError, free_port, is_running
from feedsite.embedded.valkey import VALKEY

VARIABLES = ["DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS"]


@pytest.fixture(autouse=True)
def nothing_external(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("embedded") / "data dir"
    yield directory
    stack.remove(directory)


@pytest.fixture
def running(data_dir: Path) -> dict[str, state.ServerRecord]:
    stack.start(data_dir)
    return state.read(data_dir)


def manage(data_dir: Path, action: str) -> subprocess.CompletedProcess[str]:
    # Were a server to keep the pipe open, this would not return.
    return subprocess.run(
        [sys.executable, "manage.py", "embedded", action],
        env=os.environ | {"FEED_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kill(data_dir: Path, variable: str) -> None:
    record = state.read(data_dir)[variable]
    os.kill(record.pid, signal.SIGKILL)
    assert free_port(record.port) == record.port


def test_the_command_starts_names_and_stops_all(data_dir: Path) -> None:
    assert manage(data_dir, "env").returncode != 0

    started = manage(data_dir, "start")
    assert (started.returncode, started.stderr) == (0, "")
    assert started.stdout.count(": started, 127.0.0.1:") == 3
    assert manage(data_dir, "status").returncode == 0

    environment = dict(line.split("=", 1) for line in manage(data_dir, "env").stdout.splitlines())
    assert environment == addresses(data_dir)
    assert all(server.answers(environment[server.variable]) for server in stack.SERVERS)

    assert manage(data_dir, "stop").stdout.count(": stopped") == 3
    assert manage(data_dir, "status").returncode == 1
    assert manage(data_dir, "stop").returncode == 0


def test_a_second_start_changes_nothing(
    data_dir: Path, running: dict[str, state.ServerRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    stack.start(data_dir)
    assert state.read(data_dir) == running
    assert capsys.readouterr().out.count("already running") == 3


def test_the_role_can_create_databases_and_data_survives_a_restart(
    data_dir: Path, running: dict[str, state.ServerRecord]
) -> None:
    url = running["DATABASE_URL"].url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE another")
        connection.execute("DROP DATABASE another")
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS id")
    stack.stop(data_dir)
    stack.start(data_dir)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT id FROM kept").fetchall() == [(1,)]


@pytest.mark.parametrize("variable", VARIABLES)
def test_start_revives_a_killed_server_and_only_that(
    data_dir: Path, running: dict[str, state.ServerRecord], variable: str
) -> None:
    kill(data_dir, variable)
    assert not stack.status(data_dir)
    stack.start(data_dir)
    assert stack.status(data_dir)
    now = state.read(data_dir)
    assert now[variable].url == running[variable].url
    assert {other for other in VARIABLES if now[other].pid != running[other].pid} == {variable}


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_server_moves_when_its_port_is_taken(
    data_dir: Path, running: dict[str, state.ServerRecord], variable: str
) -> None:
    kill(data_dir, variable)
    with socket.create_server(("127.0.0.1", running[variable].port)):
        stack.start(data_dir)
    assert state.read(data_dir)[variable].port != running[variable].port
    assert stack.status(data_dir)


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_pid_that_now_belongs_to_another_process_is_no_server(
    data_dir: Path, running: dict[str, state.ServerRecord], variable: str
) -> None:
    kill(data_dir, variable)
    reused = replace(running[variable], pid=os.getpid())
    state.write(data_dir, running | {variable: reused})
    lock = data_dir / "postgres" / "data" / "postmaster.pid"
    if variable == "DATABASE_URL":
        lock.write_text("\n".join([str(os.getpid()), *lock.read_text().splitlines()[1:]]))

    assert not stack.status(data_dir)
    stack.start(data_dir)
    assert stack.status(data_dir)
    assert state.read(data_dir)[variable].pid != os.getpid()


def test_concurrent_starts_start_each_server_once(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack.stop(data_dir)
    with ThreadPoolExecutor() as threads:
        for call in [threads.submit(stack.start, data_dir) for _ in range(3)]:
            call.result()
    output = capsys.readouterr().out
    assert output.count(": started") == 3
    assert output.count(": already running") == 6


def test_a_server_given_by_the_environment_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/feed")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "elsewhere:9092")
    stack.start(tmp_path)
    try:
        assert list(addresses(tmp_path)) == ["REDIS_URL"]
        assert capsys.readouterr().out.count(": external") == 2
        assert stack.environment(tmp_path)["DATABASE_URL"] == "postgresql://elsewhere/feed"
        monkeypatch.setenv("REDIS_URL", addresses(tmp_path)["REDIS_URL"])
        stack.start(tmp_path)
        assert "Valkey: already running" in capsys.readouterr().out
    finally:
        stack.remove(tmp_path)


def test_a_server_that_does_not_start_is_an_error_naming_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(
        VALKEY, command=lambda data_dir, port, password: ["/bin/sh", "-c", "echo no; exit 1"]
    )
    monkeypatch.setattr(stack, "SERVERS", [broken])
    monkeypatch.setattr(stack, "ATTEMPTS", 1)
    with pytest.raises(EmbeddedError, match=r"Valkey did not start; see .*valkey-server\.log"):
        stack.start(tmp_path)
    # It is given up as soon as its command line is not the server's, which may be before it says
    # anything.
    deadline = time.monotonic() + 10
    while not (log := (tmp_path / "valkey-server.log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log == "no\n"


def test_passwords_are_needed_and_kept_from_others(
    data_dir: Path, running: dict[str, state.ServerRecord]
) -> None:
    assert not VALKEY.answers(f"redis://127.0.0.1:{running['REDIS_URL'].port}/0")
    assert not VALKEY.answers(VALKEY.url(running["REDIS_URL"].port, "wrong"))
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(running["DATABASE_URL"].url.replace("feed:", "feed:wrong"))
    readable = [
        path.name for path in data_dir.iterdir() if path.is_file() and path.stat().st_mode & 0o077
    ]
    assert readable in ([], ["lock"])
    assert data_dir.stat().st_mode & 0o044 == 0


def test_nothing_is_removed_that_someone_uses(
    data_dir: Path, running: dict[str, state.ServerRecord]
) -> None:
    with psycopg.connect(running["DATABASE_URL"].url):
        refused = manage(data_dir, "remove")
    assert refused.returncode == 1
    assert "PostgreSQL has 1 open connections. Stop what uses it" in refused.stderr
    with (data_dir / stack.DEMO_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "a demo is running on it" in manage(data_dir, "remove").stderr
    (data_dir / stack.DEMO_LOCK).unlink()
    assert stack.status(data_dir)


def test_remove_leaves_no_server_and_no_data(
    data_dir: Path, running: dict[str, state.ServerRecord]
) -> None:
    home = (data_dir / "postgres").resolve()
    stack.remove(data_dir)
    assert not home.exists()
    # Settings keep their generated secrets there too, which are not the stack's to delete.
    assert {path.name for path in data_dir.iterdir()} <= {"django_secret_key", "jwt_signing_key"}
    assert addresses(data_dir) == {}
    assert not any(
        is_running(r.pid, s.program, r.port) for s in stack.SERVERS for r in running.values()
    )
