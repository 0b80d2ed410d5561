"""The processes of the demo: one that must not be started again stays down, and the rest stays
up.
"""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventbus.worker import EXIT_FLOOD
from feedsite.demo.children import Children
from feedsite.demo.log import Log
from tests.eventbus.events import eventually


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def children(said: io.StringIO, tmp_path: Path) -> Iterator[Children]:
    started = Children(Log(said), tmp_path / "demo.json")
    yield started
    for name in ("api", "run_fanout"):
        started.stop(name, lambda: True)


def start(children: Children, name: str, program: str) -> None:
    command = [sys.executable, "-c", program]
    children.start(name, name, command, os.environ, stays_down={EXIT_FLOOD: "a flood"})


def test_a_worker_that_stopped_for_a_flood_stays_down_and_the_rest_stays_up(
    children: Children, said: io.StringIO
) -> None:
    start(children, "api", "import time; time.sleep(60)")
    start(children, "run_fanout", f"raise SystemExit({EXIT_FLOOD})")
    eventually(lambda: not children.runs("run_fanout"))
    for _ in range(10):
        children.revive()
    assert said.getvalue().count("run_fanout stays down (exit status 3): a flood.") == 1
    assert "started again" not in said.getvalue()
    assert not children.runs("run_fanout")
    assert children.runs("api")


def test_a_worker_that_was_killed_is_started_again(children: Children, said: io.StringIO) -> None:
    start(children, "run_fanout", "raise SystemExit(4)")
    eventually(lambda: not children.runs("run_fanout"))
    children.revive()
    assert "run_fanout died unexpectedly (exit status 4)." in said.getvalue()
    assert "run_fanout started again" in said.getvalue()
