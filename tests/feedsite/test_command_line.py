"""Whatever is typed after `manage.py`, the answer is the result or one sentence: never a
traceback.
"""

import io
import os
import subprocess
import sys
from argparse import ArgumentParser, _HelpAction, _StoreAction, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand

import manage
from eventbus import kafka
from feedsite.embedded.processes import free_port
from tests.eventbus.dead_letter_factories import an_entry

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[2]
APPS = ("eventbus", "posts", "feeds", "feedsite")
COMMANDS = sorted(name for name, app in get_commands().items() if app in APPS)

# As the shell hands it over: the last one is a byte that is no UTF-8.
HOSTILE = [
    "",
    "-1",
    "0",
    "9" * 30,
    "nan",
    "inf",
    "1e400",
    "١٢",
    "a(",
    "\x1b[2J",
    "x" * 5_000,
    "\udcff",
]

# What else a command needs to get as far as the value that is tried.
NEEDS = {
    "dlq show": [],
    "dlq list": [],
    "dlq replay": ["--all", "--dry-run"],
    "dlq discard": ["--all", "--dry-run", "--reason=tried"],
    "import_follows": ["follows.csv"],
    "import_posts": ["posts.csv"],
    "issue_token": ["1"],
}


class Ended:
    """How a command ended, and what it said."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err + (code if isinstance(code, str) else "")


def run(*arguments: str) -> Ended:
    """Run `manage.py` in this process; what it raises, but for its end, is raised here."""
    out, err = io.StringIO(), io.StringIO()
    streams, argv = (sys.stdout, sys.stderr), sys.argv
    sys.stdout, sys.stderr, sys.argv = out, err, ["manage.py", *arguments]
    code: object = 0
    try:
        manage.main()
    except SystemExit as end:
        code = end.code
    finally:
        (sys.stdout, sys.stderr), sys.argv = streams, argv
    return Ended(code, out.getvalue(), err.getvalue())


def options_of(parser: ArgumentParser, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each option that takes a value, with the command line before the value."""
    common = {action.dest for action in BaseCommand().create_parser("", "")._actions}
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for name, inner in action.choices.items():
                yield from options_of(inner, f"{path} {name}")
        elif isinstance(action, _StoreAction) and action.dest not in common:
            rest = NEEDS.get(path, [])
            if action.option_strings:
                yield path, [*path.split(), *rest, action.option_strings[0]]
            else:
                yield path, path.split()
        else:
            assert action.dest in common or isinstance(action, _HelpAction) or action.nargs == 0


def command_lines(command: str) -> Iterator[list[str]]:
    parser = load_command_class(get_commands()[command], command).create_parser(
        "manage.py", command
    )
    for _path, line in options_of(parser, command):
        for value in HOSTILE:
            if line[-1].startswith("--"):
                yield [*line[:-1], f"{line[-1]}={value}"]
            else:
                yield [*line, value]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where files may be written, and where those are that the commands need."""
    monkeypatch.chdir(tmp_path)
    Path("follows.csv").write_text("follower,followee\n1,2\n")
    Path("posts.csv").write_text("author,text\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hostile_value_of_any_option_gets_a_sentence_or_a_result(command: str) -> None:
    entry = an_entry()
    for line in command_lines(command):
        ended = run(*line)
        assert "Traceback" not in ended.err, line
        if ended.code not in (0, None):
            assert ended.err.strip(), line
    entry.refresh_from_db()
    assert entry.state == "open"


@pytest.mark.parametrize(
    "line",
    [
        "verify_feeds --user -1",
        "rebuild_feeds --user 0",
        "dlq replay --all --yes --rate nan",
        "run_fanout --metrics-port 99999",
        "run_dlq --metrics-port 9100 --metrics-host nowhere",
        "dlq show -1",
        "issue_token ١٢",
        "dlq list --since yesterday",
        "import_follows follows.csv --as-of yesterday",
    ],
)
def test_what_cannot_be_is_an_error(line: str) -> None:
    ended = run(*line.split())
    assert ended.code not in (0, None)
    assert "rror: " in ended.err


def closed_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


SAYING = [
    "create_topics",
    "dlq list",
    "dlq list --all",
    "dlq show {entry}",
    "dlq replay --all --dry-run",
    "dlq discard --all --dry-run --reason tried",
    "embedded env",
    "embedded status",
    "erase_user 7 --yes",
    "export_user 7",
    "import_follows follows.csv",
    "import_posts posts.csv",
    "issue_token 1",
    "keep_partitions",
    "migrate",
    "prune --dry-run",
    "rebuild_feeds --all",
    "verify_feeds",
    "--help",
]
# They say nothing to standard output, or are tried with all they do in tests of their own.
NOT_SAYING = {"run_fanout", "run_dlq", "demo", "load", "replay_topic", "cells"}


def test_every_command_that_says_something_is_tried_with_a_closed_pipe() -> None:
    assert {line.split()[0] for line in SAYING} - {"--help"} | NOT_SAYING == set(COMMANDS)


@pytest.mark.parametrize("line", SAYING)
def test_a_reader_that_has_seen_enough_is_no_error(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.create_topics()
    entry = an_entry()
    err = io.StringIO()
    with closed_pipe() as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        monkeypatch.setattr("sys.stderr", err)
        monkeypatch.setattr("sys.argv", ["manage.py", *line.format(entry=entry.id).split()])
        with pytest.raises(SystemExit) as end:
            manage.main()
    assert end.value.code == manage.EXIT_PIPE_CLOSED
    assert "Traceback" not in err.getvalue()
    assert "Broken pipe" not in err.getvalue()


def test_dlq_takes_an_error_for_its_name_and_not_for_a_pattern() -> None:
    a_value_error, another = an_entry(error="builtins.ValueError"), an_entry(error="app.KeyError")
    for name, found in {
        "ValueError": {a_value_error},
        "builtins.ValueError": {a_value_error},
        "app.KeyError": {another},
        ".*": set(),
        "a(": set(),
        "Error": set(),
    }.items():
        lines = run("dlq", "list", "--error", name).out.splitlines()
        assert {int(line.split("\t")[0]) for line in lines} == {entry.id for entry in found}, name


def test_a_selection_that_happens_to_be_everything_is_not_discarded_without_all() -> None:
    for _ in range(3):
        an_entry()
    discard = ["dlq", "discard", "--reason", "tried", "--yes", "--since", "1990-01-01"]
    refused = run(*discard)
    assert refused.code == 1
    assert "all 3 dead letters" in refused.err
    assert "--all" in refused.err
    assert "3 discarded" in run(*discard, "--all").out


def test_control_characters_from_kafka_do_not_reach_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07 \u202e\x9b2J"
    entry = an_entry(
        message=hostile,
        value=hostile.encode(),
        key=hostile.encode(),
        event_type=hostile,
        stack_trace=hostile,
    )
    for line in (["list"], ["list", "--all"], ["show", str(entry.id)]):
        said = run("dlq", *line).out
        assert said
        assert not set(said) & set("\x1b\x07\x9b\u202e"), line
    assert r"\x1b]0;owned\x07 \u202e\x9b2J" in said


def test_a_load_on_nothing_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", unexpected)
    ended = run("load", "--port", str(free_port()))
    assert "Nothing answers" in ended.err


def unexpected(*_args: Any) -> None:
    raise AssertionError("nobody should wait")


def test_one_is_no_plural() -> None:
    entry = an_entry(attempts="1")
    said = run("dlq", "show", str(entry.id)).out
    assert "1 attempt, 0 replays" in said


def test_without_postgresql_a_command_says_why_in_one_sentence() -> None:
    nowhere = f"postgresql://feed:secret@127.0.0.1:{free_port()}/feed"
    environment = {**os.environ, "DATABASE_URL": nowhere}
    command = [sys.executable, "manage.py", "verify_feeds"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: PostgreSQL cannot be used: connection failed")
    assert "refused" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
