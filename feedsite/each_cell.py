"""Commands and cells: `manage.py COMMAND --cell NAME` is about that cell, and without it about each.

All of it is settled before Django reads its settings: a process is of one cell from its start.
"""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from django.core.exceptions import ImproperlyConfigured

from eventbus import cellmap

OPTION = "--cell"

# They never end, so there is one process for each cell.
WORKERS = frozenset({"run_fanout", "run_dlq"})
# About what each cell has a copy or a part of. Any other command does its work once: what is
# published reaches all cells.
FOR_EACH = frozenset(
    {
        "dlq",
        "import_follows",
        "keep_partitions",
        "migrate",
        "prune",
        "rebuild_feeds",
        "replay_topic",
        "verify_feeds",
    }
)

# Those of them that read a file, which each cell needs whole.
READING = frozenset({"import_follows"})
# So long a command has to end once it was told to; after that it is ended.
END_SECONDS = 30.0
LOOK_SECONDS = 0.2
SIGNALLED = 128  # and the number of the signal: what a shell shows of a program that one has ended

# Options of `dlq` that name entries or groups by number.
NUMBERED = ("--id", "--group")


def take_cell(arguments: Sequence[str]) -> list[str]:
    """Return the command line without `--cell NAME`, which becomes this process's `FEED_CELL`."""
    rest: list[str] = []
    given = iter(arguments)
    for word in given:
        name, _, value = word.partition("=")
        if name == OPTION:
            os.environ["FEED_CELL"] = value or next(given, "")
            if not os.environ["FEED_CELL"]:
                raise ImproperlyConfigured("--cell needs the name of a cell.")
        else:
            rest.append(word)
    return rest


def is_for_each(arguments: Sequence[str]) -> bool:
    """Tell whether the command is to be run for one cell after the other.

    Raises `ImproperlyConfigured` for a worker of which nobody has said whose it is.
    """
    command = arguments[1] if len(arguments) > 1 else ""
    if not os.environ.get("FEED_CELLS") or os.environ.get("FEED_CELL"):
        return False
    if {"-h", "--help"} & set(arguments):
        return False
    if command in WORKERS:
        _refuse("Say whose worker it is")
    if command == "dlq" and any(map(_says_a_number, arguments[2:])):
        _refuse("Numbers of dead letters are a cell's own: say which cell")
    if command in READING and any(map(_can_be_read_once, arguments[2:])):
        _refuse("What comes through a pipe can be read once: give a file, or say which cell")
    return command in FOR_EACH


def _can_be_read_once(word: str) -> bool:
    try:
        mode = Path(word).stat().st_mode
    except OSError:
        return False  # of what it is the command tells
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _says_a_number(word: str) -> bool:
    """Tell whether the word of a `dlq` command has to do with numbers that each cell gives for
    itself. As argparse has it, options may be abbreviated and have their values behind a `=`.
    """
    option = word.partition("=")[0]
    is_option = len(option) > len("--") and option.startswith("--")
    return word == "show" or (is_option and any(one.startswith(option) for one in NUMBERED))


def _refuse(sentence: str) -> NoReturn:
    names = ", ".join(cellmap.read(os.environ["FEED_CELLS"]).places)
    raise ImproperlyConfigured(f"{sentence}, with --cell and one of {names}.")


def run(arguments: Sequence[str]) -> int:
    """Run the command for each cell in turn, a process and a headline each; return the worst exit
    status.
    """
    worst = 0
    with _told_to_end() as told:
        for name in cellmap.read(os.environ["FEED_CELLS"]).places:
            sys.stdout.write(f"cell {name}:\n")
            sys.stdout.flush()
            worst = max(worst, _run_in(name, arguments, told))
            if told:
                return SIGNALLED + told[0]
    return worst


def _run_in(name: str, arguments: Sequence[str], told: list[int]) -> int:
    """Run the command for one cell; pass on to it what this process is told, and end it if it does
    not end by that.
    """
    child = subprocess.Popen(  # noqa: S603 - our own arguments
        [sys.executable, *arguments], env={**os.environ, "FEED_CELL": name}
    )
    while not told:
        try:
            # Of a process that a signal has ended it is negative.
            return abs(child.wait(LOOK_SECONDS))
        except subprocess.TimeoutExpired:
            continue
    # A terminal has told the child too, and a second time would be to end at once.
    if told[0] != signal.SIGINT or not os.isatty(0):
        child.send_signal(told[0])
    try:
        return abs(child.wait(END_SECONDS))
    except subprocess.TimeoutExpired:
        child.kill()
        return abs(child.wait())


@contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """Yield the signals that have told this process to end, as they come."""
    told: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
