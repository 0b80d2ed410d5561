"""The system's real processes on the servers of the tests, for tests that use it as a whole."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
from django.conf import settings
from django.db import connection

from eventbus.models import DeadLetter, ProcessedEvent
from feedsite.authentication import issue_token
from feedsite.embedded.processes import free_port

PATIENCE = 60.0  # seconds; enough also for a machine that is busy with other things
SECRET = "s" * 50
# Which process of the API answers is up to the kernel: by then each of them has.
READY_ANSWERS = 10


def environment() -> dict[str, str]:
    """Return what makes other processes use the servers and the database of the running tests."""
    database = connection.settings_dict
    password = quote(database["PASSWORD"], safe="")
    place = f"{database['HOST']}:{database['PORT']}/{database['NAME']}"
    return {
        **os.environ,
        "DATABASE_URL": f"postgresql://{database['USER']}:{password}@{place}",
        "REDIS_URL": settings.CACHES["default"]["LOCATION"],
        "KAFKA_BOOTSTRAP_SERVERS": settings.KAFKA_BOOTSTRAP_SERVERS,
        "DJANGO_SECRET_KEY": SECRET,
        "JWT_SIGNING_KEY": settings.JWT_SIGNING_KEY,
        "DJANGO_HTTPS": "false",
        "KAFKA_SESSION_TIMEOUT_MS": str(settings.KAFKA_SESSION_TIMEOUT_MS),
        "KAFKA_FETCH_WAIT_MS": str(settings.KAFKA_FETCH_WAIT_MS),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


class Process:
    """One process of the system; its log is in `log`."""

    def __init__(self, name: str, command: list[str], directory: Path, **variables: str) -> None:
        directory.mkdir(exist_ok=True)
        self.log = directory / f"{name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command, env=environment() | variables, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """Kill the process and all it has started (the API's workers), which a killed parent would
        leave behind.
        """
        family = psutil.Process(self.popen.pid).children(recursive=True)
        self.popen.kill()
        self.popen.wait()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family, PATIENCE)

    def stop(self) -> int:
        """Ask the process to leave and return its exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(PATIENCE)

    def running(self) -> bool:
        return self.popen.poll() is None


class System:
    """Starts processes and talks to the API as any client does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []
        self.url = ""

    def command(self, *arguments: str, script: str = "manage.py", **variables: str) -> Process:
        process = Process(
            arguments[0], [sys.executable, script, *arguments], self.directory, **variables
        )
        self.processes.append(process)
        return process

    def worker(self, **variables: str) -> Process:
        return self.command("run_fanout", **variables)

    def api(self, wait_for: str = "readyz", **variables: str) -> Process:
        """Start the API by its production command line, at the port of an earlier one; wait for
        that probe.
        """
        port = str(free_port(httpx.URL(self.url).port or 0 if self.url else 0))
        metrics = self.directory / f"metrics-{port}"
        api = Process(
            "api",
            ["bin/serve"],
            self.directory,
            PORT=port,
            PROMETHEUS_MULTIPROC_DIR=str(metrics),
            **variables,
        )
        self.processes.append(api)
        self.url = f"http://127.0.0.1:{port}"
        wait_until(lambda: all(is_ready(self.url, wait_for) for _ in range(READY_ANSWERS)))
        return api

    def client(self, user: int, scope: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {issue_token(user, scope, 3_600)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE)

    def stream(self, user: int) -> socket.socket:
        """Return the connection on which a live stream of the user's own feed was asked for."""
        stream = socket.create_connection(
            ("127.0.0.1", httpx.URL(self.url).port or 0), timeout=PATIENCE
        )
        head = f"GET /feeds/{user}/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        token = f"Authorization: Bearer {issue_token(user, '', 3_600)}\r\n\r\n"
        stream.sendall(f"{head}{token}".encode())
        return stream

    def shut_down(self) -> None:
        for process in self.processes:
            if process.running():
                process.popen.terminate()
        for process in self.processes:
            try:
                process.popen.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def running(directory: Path) -> Iterator[System]:
    system = System(directory)
    try:
        yield system
    finally:
        system.shut_down()


def is_ready(url: str, probe: str = "readyz") -> bool:
    try:
        return httpx.get(f"{url}/{probe}", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(
    condition: Callable[[], object],
    seconds: float = PATIENCE,
    message: Callable[[], str] = lambda: "This did not come true in time.",
) -> None:
    """Wait until `condition` holds; a test whose condition never does fails here."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def settled(event_ids: set[int]) -> bool:
    """Tell whether every event is processed or a dead letter."""
    processed = set(
        ProcessedEvent.objects.filter(event_id__in=event_ids).values_list("event_id", flat=True)
    )
    dead = set(DeadLetter.objects.filter(event_id__in=event_ids).values_list("event_id", flat=True))
    return event_ids <= processed | dead


def read_feed(client: httpx.Client, user: int, limit: int = 100) -> list[int]:
    """Return the post ids of a whole feed, page by page to its end."""
    posts: list[int] = []
    url: str | None = f"/feeds/{user}?limit={limit}"
    while url:
        page = client.get(url).raise_for_status().json()
        assert page["results"] or page["next"] is None, "an empty page with a next one"
        posts += [int(post["id"]) for post in page["results"]]
        url = page["next"]
    return posts
