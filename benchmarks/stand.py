"""What is measured: servers, API and workers of the benchmark's own, in a directory that is removed
at the end.
"""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import django

from benchmarks.tables import progress
from feedsite.embedded import stack
from feedsite.embedded.processes import free_port

ROOT = Path(__file__).resolve().parent.parent
SERVERS = ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS")
START_SECONDS = 30.0
STOP_SECONDS = 40.0


class Stand:
    """Starts the servers and sets Django up; use it as a context manager."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="feed-bench-"))

    def __enter__(self) -> Self:
        # Whatever the shell has set for another purpose: production settings, on servers nobody
        # else uses.
        for name in (*SERVERS, "FEED_EMBEDDED_FSYNC"):
            os.environ.pop(name, None)
        os.environ |= {
            "FEED_DATA_DIR": str(self.directory),
            "DJANGO_SETTINGS_MODULE": "feedsite.settings",
            "LOG_LEVEL": "WARNING",
        }
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        if "eventbus.producer" in sys.modules:
            _leave()
        stack.remove(self.directory, lambda line: None)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        progress("starting the servers")
        stack.start(self.directory, lambda line: None)
        django.setup()
        # Not before the servers have their addresses, which the settings read.
        from django.core.management import call_command

        call_command("migrate", verbosity=0, interactive=False)
        call_command("create_topics", stdout=(self.directory / "topics.log").open("w"))

    @contextmanager
    def api(self, command: Sequence[str] = ("bin/serve",), **environment: str) -> Iterator[int]:
        """Run the API, or another `APPLICATION` by the same command line; yield its port."""
        port = free_port()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        filled = [word.format(port=port) for word in command]
        with self.process(filled, {"PORT": str(port), "PATH": path, **environment}) as process:
            _wait_until_ready(port, process)
            yield port

    @contextmanager
    def worker(self, command: str, **environment: str) -> Iterator[int]:
        """Run `manage.py COMMAND`; yield its metrics port."""
        port = free_port()
        with self.process(
            [sys.executable, "manage.py", command, "--metrics-port", str(port)], environment
        ):
            yield port

    @contextmanager
    def process(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process in the background, its output in a file; stop it at the end."""
        with (self.directory / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            _stop(process)


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not get ready")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _leave() -> None:
    """Give back what this process holds while there are servers to tell."""
    from django.db import connection

    from eventbus import producer
    from eventbus.ids import node_lease

    producer.close()
    node_lease.release()
    connection.close_pool()  # type: ignore[attr-defined]
