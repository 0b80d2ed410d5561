"""Start, stop and watch the embedded servers together.

Every function takes the data directory. A server whose environment variable names another address
is external and left alone.
"""

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from feedsite.embedded import addresses, postgres, state
from feedsite.embedded.kafka import KAFKA
from feedsite.embedded.postgres import POSTGRES
from feedsite.embedded.processes import EmbeddedError, Server, end, free_port, is_running, spawn
from feedsite.embedded.state import ServerRecord
from feedsite.embedded.valkey import VALKEY

SERVERS = (POSTGRES, VALKEY, KAFKA)
START_TIMEOUT = 60.0  # seconds; PostgreSQL may have to recover from a crash first
ATTEMPTS = 3
DEMO_LOCK = "demo.lock"  # held by a demo as long as it runs

Say = Callable[[str], object]


def start(data_dir: Path, say: Say = print) -> None:
    """Start what is not running and return once each server answers; one line a server goes to
    `say`.

    Raises `EmbeddedError` if one does not come up. Concurrent calls wait for each other.
    """
    with _locked(data_dir):
        for server in SERVERS:
            say(f"{server.name}: {_start(server, data_dir)}")


def stop(data_dir: Path, say: Say = print) -> None:
    """Stop what is running; data, ports and passwords are kept."""
    _end_all(data_dir, say, {server: server.stop_signal for server in SERVERS})


def status(data_dir: Path, say: Say = print) -> bool:
    """Tell whether every server that is not external answers; one line a server goes to `say`."""
    records = state.read(data_dir)
    healthy = True
    for server in SERVERS:
        record = records.get(server.variable)
        if _is_external(server, record):
            say(f"{server.name}: external, see {server.variable}")
        elif record and _runs(server, record) and server.answers(record.url):
            say(f"{server.name}: up, {_place(record)}")
        else:
            say(f"{server.name}: down")
            healthy = False
    return healthy


def environment(data_dir: Path) -> dict[str, str]:
    """Return the address each client should use, by environment variable; external servers
    included.
    """
    external = {s.variable: os.environ[s.variable] for s in SERVERS if os.environ.get(s.variable)}
    return addresses(data_dir) | external


def users(data_dir: Path) -> str:
    """Return who uses the data, as a clause; empty when nobody does."""
    if _is_locked(data_dir / DEMO_LOCK):
        return "a demo is running on it"
    record = state.read(data_dir).get(POSTGRES.variable)
    sessions = postgres.sessions(record.url) if record and _runs(POSTGRES, record) else 0
    return f"PostgreSQL has {sessions} open connections" if sessions else ""


def remove(data_dir: Path, say: Say = print) -> None:
    """End the servers and delete what they and this package wrote; other files in `data_dir`
    stay.
    """
    # Nothing they would put in order before they leave is kept.
    _end_all(data_dir, say, {server: server.drop_signal for server in SERVERS})
    postgres.remove(data_dir)
    for server in SERVERS:
        server.log(data_dir).unlink(missing_ok=True)
    programs = [server.program for server in SERVERS]  # of those that were copied here
    for name in ("servers.json", "lock", "valkey.conf", *programs):
        (data_dir / name).unlink(missing_ok=True)


def _start(server: Server, data_dir: Path) -> str:
    record = state.read(data_dir).get(server.variable)
    if _is_external(server, record):
        return f"external, {server.variable} is set"
    if record and _runs(server, record) and _wait(server, record):
        return f"already running, {_place(record)}"
    for attempt in range(ATTEMPTS):
        if record and _runs(server, record):
            raise EmbeddedError(
                f"{server.name} runs but does not answer; see {server.log(data_dir)}."
            )
        # The port may be taken between our look and the server's, or a killed server's children
        # still leave.
        time.sleep(attempt)
        record = _launch(server, data_dir, record)
        if _wait(server, record):
            return f"started, {_place(record)}"
    raise EmbeddedError(f"{server.name} did not start; see {server.log(data_dir)}.")


def _launch(server: Server, data_dir: Path, last: ServerRecord | None) -> ServerRecord:
    port = free_port(last.port if last else 0)
    password = last.password if last else secrets.token_urlsafe(24)
    record = ServerRecord(server.url(port, password), port, password, pid=0)
    # Before the first start, so that a cluster never exists without its password.
    _save(data_dir, server, record)
    command = server.command(data_dir, port, password)
    record = replace(record, pid=spawn(command, log=server.log(data_dir), user=server.user))
    _save(data_dir, server, record)
    return record


def _wait(server: Server, record: ServerRecord) -> bool:
    """Wait until the server answers; false if it leaves, or does not answer in time."""
    deadline = time.monotonic() + START_TIMEOUT
    while _runs(server, record) and time.monotonic() < deadline:
        if server.answers(record.url):
            return True
        time.sleep(0.05)
    return False


def _end_all(data_dir: Path, say: Say, signals: Mapping[Server, signal.Signals]) -> None:
    if not data_dir.exists():
        return
    with _locked(data_dir):
        for server in reversed(SERVERS):
            say(f"{server.name}: {_end(server, data_dir, signals[server])}")


def _end(server: Server, data_dir: Path, with_signal: signal.Signals) -> str:
    record = state.read(data_dir).get(server.variable)
    if not record or not _runs(server, record):
        return "not running"
    end(record.pid, server.program, record.port, with_signal)
    _save(data_dir, server, replace(record, pid=0))
    return "stopped"


def _runs(server: Server, record: ServerRecord) -> bool:
    return is_running(record.pid, server.program, record.port)


def _is_external(server: Server, record: ServerRecord | None) -> bool:
    given = os.environ.get(server.variable)
    return bool(given) and (record is None or given != record.url)


def _place(record: ServerRecord) -> str:
    return f"127.0.0.1:{record.port}, pid {record.pid}"


def _save(data_dir: Path, server: Server, record: ServerRecord) -> None:
    state.write(data_dir, {**state.read(data_dir), server.variable: record})


def _is_locked(file: Path) -> bool:
    try:
        with file.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        # PostgreSQL's user must pass through; it cannot list the directory, and every file in it is
        # closed.
        data_dir.chmod(data_dir.stat().st_mode | 0o011)
    with (data_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
