"""`make demo KAFKA=apache`: stopped at any moment, or killed, it leaves no process behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_demo import Demo, run, shown_feed, wait_until

__all__ = ["run"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.environ.get("KAFKA") != "apache", reason="KAFKA=apache runs it"),
]

PROGRAM = ("-m", "tests.kafka.demo")

Run = Callable[..., Demo]


def brokers(data_dir: Path) -> list[psutil.Process]:
    """Return the brokers that run on this data."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "java"
        and str(data_dir) in " ".join(process.info["cmdline"] or [])
    ]


def test_it_is_stopped_while_it_starts(run: Run, tmp_path: Path) -> None:
    demo = run(program=PROGRAM)
    wait_until(lambda: bool(brokers(tmp_path)) or demo.process.poll() is not None)
    demo.stop(signal.SIGINT)
    assert "Traceback" not in demo.output
    assert brokers(tmp_path) == []


def test_one_that_was_killed_is_cleared_away_by_the_next_which_keeps_its_data(
    run: Run, tmp_path: Path
) -> None:
    first = run(program=PROGRAM)
    first.wait_for("Ctrl-C stops everything.")
    assert "posts accepted" in first.output
    second = run(program=PROGRAM)
    assert second.process.wait() == 2
    second.wait_for("error: A demo is running already on")
    first.process.kill()
    first.process.wait()
    [left_over] = brokers(tmp_path)

    third = run(program=PROGRAM)
    third.wait_for("Ctrl-C stops everything.")
    assert "left over from a demo that was killed" in third.output
    assert not left_over.is_running()
    assert "posts accepted" not in third.output
    assert len(shown_feed(third)) == 10
    third.stop(signal.SIGTERM)
    assert "Apache Kafka: stopped" in third.output
    assert brokers(tmp_path) == []
