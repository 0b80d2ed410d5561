"""What the log looks like: few lines in an outage, no colours outside a terminal, nothing that
moves a cursor.
"""

import io
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from feedsite import logs, outage_lines
from feedsite.outage_lines import OutageLines

ROOT = Path(__file__).resolve().parents[2]


class Log:
    """Lines that were written, of those that were said."""

    def __init__(self) -> None:
        self._filter = OutageLines()

    def say(self, event: str, level: int = logging.WARNING, **fields: object) -> dict[str, Any]:
        """Return the line if it was written, else nothing."""
        line: dict[str, Any] = {"event": event, **fields}
        record = logging.LogRecord("a.logger", level, "", 0, line, None, None)
        return line if self._filter.filter(record) else {}

    def say_as_library(self, name: str, text: str) -> str:
        record = logging.LogRecord(name, logging.ERROR, "", 0, text, None, None)
        return record.getMessage() if self._filter.filter(record) else ""


@pytest.fixture
def log() -> Log:
    return Log()


def minute_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.monotonic() + outage_lines.MINUTE
    monkeypatch.setattr(time, "monotonic", lambda: later)


def test_of_the_lines_about_an_absent_server_one_a_minute_is_written_with_the_number_of_the_others(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert log.say("kafka_consumer_error", error="refused")
    assert not any(log.say("lag_unknown") for _ in range(10))
    assert not log.say_as_library("librdkafka", "FAIL [consumer-1] refused")
    assert log.say("waiting_for_dependency"), "that is another server"
    minute_passes(monkeypatch)
    assert log.say("lag_unknown")["lines_left_out"] == 11
    assert not log.say("lag_unknown")


def test_that_a_server_goes_and_is_back_is_always_told_and_only_once(log: Log) -> None:
    log.say("cache_unreachable")
    assert log.say("server_is_away", server="redis")
    assert not log.say("server_is_away", server="redis")
    assert not log.say("cache_unreachable")
    assert log.say("server_is_back", server="redis")["lines_left_out"] == 2
    assert not log.say("server_is_back", server="redis")
    assert log.say("cache_unreachable"), "the next outage is told at once"


def test_what_is_no_news_of_an_outage_is_never_left_out(log: Log) -> None:
    assert all(log.say("dead_letter", logging.ERROR, offset=offset) for offset in range(100))


def test_every_line_that_may_be_left_out_is_one_that_the_code_writes() -> None:
    apps = [ROOT / app for app in ("eventbus", "posts", "feeds", "feedsite")]
    code = "\n".join(file.read_text() for app in apps for file in app.rglob("*.py"))
    background = set(re.findall(r'Repeating\(\s*"([\w-]+)"', code))
    for name in outage_lines.SUBJECTS:
        task = name.removesuffix("_failed")
        is_written = re.search(rf'log\.\w+\(\s*"{name}"', code) is not None
        assert is_written or task in background, name


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    """What stderr may be; a test sets it itself, for pytest puts its own there between setup and
    call.
    """
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield stream
    os.close(ours)


def rendered(**fields: object) -> str:
    line: Any = {"event": "something", "level": "info", **fields}
    for renderer in logs._renderers("console"):
        line = renderer(None, "info", line)
    return str(line)


def test_on_a_terminal_the_log_has_colours(
    terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in rendered()


def test_with_no_color_the_log_has_none_there_either(
    terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in rendered()


def test_outside_a_terminal_the_log_has_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in rendered()


def test_control_characters_from_outside_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    hostile = "\x1b[2J\u202e\x9b2J\x07"
    line = rendered(event=hostile, error=hostile, exception=f"Traceback:\n{hostile}")
    assert line.count(r"\x1b[2J") >= 3
    assert not set(line) & set(hostile) - set("[2J"), line
