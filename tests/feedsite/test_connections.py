"""Connections to PostgreSQL: one formula, which all threads at once just reach, and an idle process
holds none.
"""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventbus import kafka, producer
from eventbus.ids import idempotency
from feedsite import connections
from feedsite.embedded.processes import free_port
from feedsite.front.limits import ADMIN, READS, WRITES, thread_counts
from posts import services
from tests.crash.conftest import fresh_broker, kill
from tests.e2e.system import PATIENCE, System, environment, running, settled, wait_until

__all__ = ["fresh_broker"]

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

ROOT = Path(__file__).resolve().parents[2]
APPS = ("eventbus", "posts", "feeds", "feedsite")
THREADS = 4  # BLOCKING_THREADS
LANES = 3
LANE_NAMES = {f"lane-{number}" for number in range(LANES)}
EVERYBODY = ".*"
SESSION = {"Cookie": "sessionid=of-nobody"}


@pytest.fixture
def system(transactional_db: None, tmp_path: Path) -> Iterator[System]:
    """A system of which nothing runs yet."""
    kafka.create_topics()
    with running(tmp_path) as started:
        yield started
        kill(started.processes)


class Gated:
    """A process whose pool has just as many connections as the formula says, with a gate before
    PostgreSQL.
    """

    def __init__(self, directory: Path, needed: int) -> None:
        self._closed = directory / "closed"
        self._report = directory / "report"
        self.variables = {
            "DJANGO_SETTINGS_MODULE": "tests.feedsite.gated_settings",
            "GATE": str(directory),
            "DATABASE_POOL_MAX": str(needed),
            "BLOCKING_THREADS": str(THREADS),
            "FEED_FANOUT_LANES": str(LANES),
            "WORKERS": "1",
        }

    def close(self, threads: str) -> None:
        """Have the threads whose names match wait at the gate from their next question on,
        connection in hand.
        """
        self._closed.write_text(threads)

    def open(self) -> None:
        self._closed.unlink()

    def report(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads(self._report.read_text())
        except FileNotFoundError:
            return {"waiting": [], "asked": [], "held": 0, "taken": 0, "refused": 0}
        return told

    def waiting(self) -> set[str]:
        return set(self.report()["waiting"])

    def wait_for(self, threads: set[str]) -> None:
        """Wait until just these threads wait at the gate."""
        wait_until(
            lambda: self.waiting() == threads, message=lambda: f"{self.waiting() ^ threads} differ"
        )


def posts(count: int) -> list[int]:
    """Publish posts of as many authors; return the ids of their events."""
    return [
        services.create_post(author_id=author, content="a post", ids=idempotency.fresh()).event_id
        for author in range(1, count + 1)
    ]


def names(kind: str, count: int) -> set[str]:
    return {f"django-{kind}_{number}" for number in range(count)}


# The formula --------------------------------------------------------------------------------------


def test_the_page_about_scaling_has_the_sums_of_the_formula() -> None:
    table = (
        (ROOT / "docs" / "scaling.md")
        .read_text()
        .split("\n## PostgreSQL connections\n")[1]
        .split("\n## ")[0]
    )
    told = {
        name: int(sum_)
        for name, sum_ in re.findall(r"^\| `(\w[\w/]*)`.* = (\d+) \|$", table, re.MULTILINE)
    }
    assert told == {
        "bin/serve": connections.of_api(blocking_threads=8),
        "run_fanout": connections.of_fanout(lanes=2),
        "run_dlq": connections.of_dlq(),
    }
    (in_all,) = re.findall(
        r"^10 +× 2 +× (\d+) +\+ +12 +× (\d+) +\+ +1 +× (\d+) += +(\d+)$", table, re.MULTILINE
    )
    api, fanout, dlq, most = map(int, in_all)
    assert (api, fanout, dlq) == (told["bin/serve"], told["run_fanout"], told["run_dlq"])
    assert most == 10 * 2 * api + 12 * fanout + dlq


@pytest.mark.parametrize(
    ("threads", "lanes", "enough"), [("8", "2", 18), ("1", "2", 8), ("8", "32", 37)]
)
def test_unless_it_is_set_the_pool_is_large_enough_for_a_process_of_any_kind(
    threads: str, lanes: str, enough: int
) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "from feedsite import settings; print(settings.DATABASE_POOL_MAX)"],
        env={
            **environment(),
            "BLOCKING_THREADS": threads,
            "FEED_FANOUT_LANES": lanes,
            "FEED_BATCH_MAX_EVENTS": "100",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(shown.stdout) == enough


@pytest.mark.parametrize(
    ("command", "process", "variables", "remedy"),
    [
        (
            ["manage.py", "run_fanout"],
            "run_fanout",
            {"FEED_FANOUT_LANES": "9"},
            "raise it, or lower FEED_FANOUT_LANES",
        ),
        (["manage.py", "run_dlq"], "run_dlq", {"DATABASE_POOL_MAX": "4"}, "raise it"),
        (
            ["-m", "feedsite.rsgi"],
            "api",
            {"BLOCKING_THREADS": "16"},
            "raise it, or lower BLOCKING_THREADS",
        ),
    ],
)
def test_a_process_whose_threads_would_wait_for_each_other_is_refused_at_the_start_in_one_sentence(
    command: list[str], process: str, variables: dict[str, str], remedy: str
) -> None:
    refused = subprocess.run(
        [sys.executable, *command],
        env={**environment(), "DATABASE_POOL_MAX": "8", **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    needed = int(re.findall(r"may use (\d+) connections", refused.stderr)[0])
    assert refused.stderr == (
        f"error: Wrong configuration: DATABASE_POOL_MAX is {variables.get('DATABASE_POOL_MAX', '8')}, but this "
        f"process ({process}) may use {needed} connections at once: {remedy}.\n"
    )


def test_other_commands_need_no_more_than_one_connection() -> None:
    checked = subprocess.run(
        [sys.executable, "manage.py", "dlq", "list"],
        env={**environment(), "DATABASE_POOL_MAX": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


# Everybody at once --------------------------------------------------------------------------------


READ_PATHS = (
    "/feeds/{user}",
    "/feeds/{user}?limit=5",
    "/users/{user}/posts",
    "/feeds/{user}/new?since=0",
)
OTHER_PATHS = ("/healthz", "/readyz", "/metrics", "/docs/", "/schema/")


def read(system: System, user: int, path: str) -> int:
    with system.client(user) as client:
        return client.get(path.format(user=user)).status_code


def write(system: System, user: int) -> int:
    with system.client(user) as client:
        key = {"Idempotency-Key": f"key of {user}"}
        return client.post("/posts", json={"content": "a post"}, headers=key).status_code


def visit_admin(system: System) -> int:
    return httpx.get(f"{system.url}/admin/", headers=SESSION, timeout=PATIENCE).status_code


def ask_for_pages(
    clients: ThreadPoolExecutor, system: System, users: Iterable[int]
) -> list[Future[int]]:
    """Have each of the users read a page, of all kinds in turn."""
    return [
        clients.submit(read, system, user, READ_PATHS[user % len(READ_PATHS)]) for user in users
    ]


def test_all_threads_of_the_api_at_once_use_just_the_connections_of_the_formula(
    system: System, tmp_path: Path
) -> None:
    needed = connections.of_api(THREADS)
    gate = Gated(tmp_path, needed)
    system.api(**gate.variables)
    # Without a lease so far a write would be refused and ask nobody.
    wait_until(lambda: write(system, 1) == 202)
    counts = thread_counts(THREADS)
    with ThreadPoolExecutor(needed) as clients:
        # First, for each needs an id, and there are none for long once the lease is not renewed.
        gate.close("django-writes.*")
        asked = [clients.submit(write, system, user) for user in range(1, counts[WRITES] + 1)]
        gate.wait_for(names(WRITES, counts[WRITES]))
        gate.close(EVERYBODY)
        asked += ask_for_pages(clients, system, range(1, counts[READS] + 1))
        asked += [clients.submit(visit_admin, system) for _ in range(counts[ADMIN])]
        threads = {name for kind in (READS, WRITES, ADMIN) for name in names(kind, counts[kind])}
        with system.stream(1):  # for which one more thread counts
            gate.wait_for(threads | set(connections.API_KEEPERS))
        assert len(gate.waiting()) == needed
        # What is local holds none, whoever asks.
        for path in OTHER_PATHS:
            assert httpx.get(system.url + path, headers=SESSION, timeout=PATIENCE).status_code in (
                200,
                503,
            ), path
        assert gate.report()["held"] == needed
        gate.open()
        assert all(one.result() < 600 for one in asked)
    assert gate.report()["refused"] == 0


def test_waves_of_uncached_pages_of_all_kinds_with_writes_and_the_admin_wait_for_no_connection(
    system: System, tmp_path: Path
) -> None:
    gate = Gated(tmp_path, connections.of_api(THREADS))
    system.api(**gate.variables)
    answers: Counter[int] = Counter()
    with ThreadPoolExecutor(64) as clients:
        for wave in range(3):
            users = range(1_000 * wave + 1, 1_000 * wave + 65)
            asked = ask_for_pages(clients, system, users)
            asked += [clients.submit(write, system, user) for user in users[:16]]
            asked += [clients.submit(visit_admin, system) for _ in range(4)]
            answers.update(one.result() for one in asked)
    assert answers == {200: 3 * 64, 202: 3 * 16, 302: 3 * 4}
    assert gate.report()["refused"] == 0


def test_all_threads_of_run_fanout_at_once_use_no_more_connections_than_the_formula_says(
    system: System, tmp_path: Path
) -> None:
    needed = connections.of_fanout(LANES)
    gate = Gated(tmp_path, needed)
    events = posts(100 * LANES)
    # The consumer's thread asks between batches only.
    gate.close("(?!MainThread).*")
    port = free_port()
    system.command("run_fanout", "--metrics-port", str(port), **gate.variables)
    gate.wait_for(LANE_NAMES | set(connections.FANOUT_THREADS) - {"MainThread"})
    ask_metrics_port(port)
    assert set(gate.report()["asked"]) <= LANE_NAMES | set(connections.FANOUT_THREADS)
    gate.open()
    wait_until(lambda: settled(set(events)))
    assert gate.report()["refused"] == 0


def test_all_threads_of_run_dlq_at_once_use_no_more_connections_than_the_formula_says(
    system: System, tmp_path: Path
) -> None:
    needed = connections.of_dlq()
    gate = Gated(tmp_path, needed)
    gate.close("heartbeat|watch-postgresql|dlq_size")
    port = free_port()
    system.command("run_dlq", "--metrics-port", str(port), **gate.variables)
    gate.wait_for({"heartbeat", "watch-postgresql", "dlq_size"})
    ask_metrics_port(port)
    assert gate.report()["refused"] == 0
    assert set(gate.report()["asked"]) <= set(connections.DLQ_THREADS) | {"lane-0"}


def ask_metrics_port(port: int) -> None:
    """Have many scrapes and probes come at once; none asks PostgreSQL, so each has its answer."""
    paths = ["/metrics", "/healthz", "/readyz"] * 8
    with ThreadPoolExecutor(len(paths)) as clients:
        urls = [f"http://127.0.0.1:{port}{path}" for path in paths]
        answers = list(clients.map(lambda url: httpx.get(url, timeout=PATIENCE).status_code, urls))
    assert len(answers) == len(paths)


# Nobody at all ------------------------------------------------------------------------------------


def holds_none(gate: Gated, threads: set[str]) -> None:
    """Wait until each of `threads` has had a turn, and then for a moment in which no connection is
    held.

    A thread that kept its connection between its turns would leave no such moment.
    """
    wait_until(lambda: threads <= set(gate.report()["asked"]), message=lambda: str(gate.report()))
    taken = gate.report()["taken"]
    wait_until(lambda: gate.report()["taken"] > taken + 5)
    wait_until(lambda: gate.report()["held"] == 0, message=lambda: str(gate.report()))


def test_an_idle_api_holds_no_connection(system: System, tmp_path: Path) -> None:
    gate = Gated(tmp_path, connections.of_api(THREADS))
    system.api(**gate.variables)
    assert [read(system, 1, path) for path in READ_PATHS] == [200] * len(READ_PATHS)
    assert (write(system, 1), visit_admin(system)) == (202, 302)
    with system.stream(1):
        holds_none(gate, set(connections.API_KEEPERS))


def test_an_idle_run_fanout_holds_no_connection(system: System, tmp_path: Path) -> None:
    gate = Gated(tmp_path, connections.of_fanout(LANES))
    events = posts(100)
    system.worker(**gate.variables)
    wait_until(lambda: settled(set(events)))
    holds_none(gate, set(connections.FANOUT_THREADS))


def test_an_idle_run_dlq_holds_no_connection(system: System, tmp_path: Path) -> None:
    gate = Gated(tmp_path, connections.of_dlq())
    producer.publish_record(kafka.DEAD_LETTER_EVENTS, b"1", b"no event", [])
    system.command("run_dlq", **gate.variables)
    wait_until(
        lambda: any(
            name == "MainThread" or name.startswith("lane") for name in gate.report()["asked"]
        )
    )
    holds_none(gate, set(connections.DLQ_THREADS) - {"MainThread"})


# No lock around a question ------------------------------------------------------------------------


def uses_cached_property(source: str) -> bool:
    words = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    words |= {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.alias)}
    return "cached_property" in words


@pytest.mark.parametrize("app", APPS)
def test_nothing_is_a_cached_property_which_before_python_3_12_holds_one_lock_for_all_instances(
    app: str,
) -> None:
    """A thread that asks PostgreSQL inside of it would have all others wait, their connections in
    hand.
    """
    assert [
        str(file) for file in (ROOT / app).rglob("*.py") if uses_cached_property(file.read_text())
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "from functools import cached_property",
        "from django.utils.functional import cached_property as kept",
        "import functools\nclass A:\n    @functools.cached_property\n    def b(self): ...",
    ],
)
def test_a_cached_property_is_found_however_it_is_imported(source: str) -> None:
    assert uses_cached_property(source)
