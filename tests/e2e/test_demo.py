"""`make demo` as a person meets it: two real runs on one data directory."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from feedsite.embedded import stack
from feedsite.embedded.processes import free_port

pytestmark = pytest.mark.e2e

PATIENCE = 180.0  # three JVMs and more may share the machine
POSTS = 200
BURST = 100


def environment(data_dir: Path) -> dict[str, str]:
    """Return what a shell has in which nothing was set but the place of the data."""
    external = ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS")
    kept = {name: value for name, value in os.environ.items() if name not in external}
    return kept | {"FEED_DATA_DIR": str(data_dir)}


class Demo:
    """A running `manage.py demo` and what it has written so far."""

    def __init__(self, data_dir: Path, port: int, program: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program],
            env=environment(data_dir) | {"FEED_EMBEDDED_FSYNC": "off", "PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None)
        assert text in self.output, self.output

    def child(self, word: str) -> psutil.Process:
        (found,) = [
            c for c in psutil.Process(self.process.pid).children() if word in " ".join(c.cmdline())
        ]
        return found

    def curl(self, path: str) -> httpx.Request:
        """Return the request of the printed command line for `path`."""
        lines = [line for line in self.output.splitlines() if "  curl http" in line]
        (line,) = [line for line in lines if path in line]
        _curl, url, *options = shlex.split(line)
        pairs = list(zip(options[::2], options[1::2], strict=True))
        headers = dict(value.split(": ", 1) for option, value in pairs if option == "-H")
        body = dict(pairs).get("-d")
        return httpx.Request("POST" if body else "GET", url, headers=headers, content=body)

    def stop(self, number: signal.Signals) -> None:
        """Send a signal and expect a clean end that leaves no process behind."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        assert self.process.wait(PATIENCE) == 0, self.output
        self._reader.join(PATIENCE)
        assert [process for process in family if lives(process)] == []

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    demos: list[Demo] = []

    def start(port: int = 0, program: Sequence[str] = ("manage.py", "demo")) -> Demo:
        demos.append(Demo(tmp_path / "data", port or free_port(), program))
        return demos[-1]

    yield start
    for demo in demos:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.process.wait(PATIENCE)
    stack.remove(tmp_path / "data", say=lambda line: None)


def put_load_on(port: int, data_dir: Path) -> None:
    command = [
        sys.executable,
        "manage.py",
        "load",
        "--port",
        str(port),
        "--rate",
        "20",
        "--seconds",
        "2",
    ]
    done = subprocess.run(command, env=environment(data_dir), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"[1-9]\d* posts accepted \(.* a second\), [1-9]\d* feeds read", done.stdout)


def test_it_shows_a_feed_survives_a_kill_and_keeps_what_was_accepted(
    run: Callable[..., Demo], tmp_path: Path
) -> None:
    port = free_port()
    first = run(port)
    first.wait_for("Ctrl-C stops everything.")
    assert f"{POSTS} posts accepted" in first.output
    feed = shown_feed(first)
    assert len(feed) == 10
    for url in re.findall(r"http://127\.0\.0\.1:\d+/(?:docs/|admin/|metrics)", first.output):
        assert httpx.get(url, follow_redirects=True).status_code == 200
    put_load_on(port, tmp_path / "data")
    first.wait_for("feed rows/s")

    first.child("run_fanout").kill()
    first.wait_for("run_fanout started again")

    with httpx.Client() as client:
        for _ in range(BURST):
            assert client.send(first.curl("/posts")).status_code == 202
    first.stop(signal.SIGINT)

    second = run(port)
    second.wait_for("Ctrl-C stops everything.")
    assert "posts accepted" not in second.output
    assert shown_feed(second) == ["Hello from the command line"] * 10
    # Redis was started anew, which closes the cache for some seconds.
    wait_until(lambda: httpx.Client().send(second.curl("/feeds/")).headers["X-Cache"] == "hit")
    assert login(first) == login(second)
    assert stat.S_IMODE((tmp_path / "data" / "admin_password").stat().st_mode) == 0o600
    second.stop(signal.SIGTERM)


def lives(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that has ended may wait for ever to be collected in a
    container.
    """
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def shown_feed(demo: Demo) -> list[str]:
    return re.findall(r"^  \d\d:\d\d:\d\d  user +\d+  (.+)$", demo.output, re.MULTILINE)


def login(demo: Demo) -> str:
    return str(re.findall(r"user admin, password \S+", demo.output)[0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
