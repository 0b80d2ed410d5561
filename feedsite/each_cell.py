"""Commands and cells: `manage.py COMMAND --cell NAME` is about that cell, and without it about each.

All of it is settled before Django reads its settings: a process is of one cell from its start.
"""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from django.core.exceptions import ImproperlyConfigured

from eventbus import cellmap

OPTION = "--cell"

# They never end, so there is one process for each cell.
WORKERS = frozenset({"run_fanout", "run_dlq"})
# About what each cell has a copy or a part of. Any other command does its work once: what is
# published reaches all cells.
IMPORT = "import_follows"
FOR_EACH = frozenset(
    {
        IMPORT,
        "dlq",
        "keep_partitions",
        "migrate",
        "prune",
        "rebuild_feeds",
        "replay_topic",
        "verify_feeds",
    }
)

# As shells tell it.
EXIT_BY_SIGNAL = 128
TOLD_TO_END = (EXIT_BY_SIGNAL + signal.SIGINT, EXIT_BY_SIGNAL + signal.SIGTERM)

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
    if command == IMPORT and any(map(_can_be_read_once, arguments[2:])):
        _refuse("A pipe can be read only once: give a file, or say which cell")
    return command in FOR_EACH


def _can_be_read_once(word: str) -> bool:
    """Tell whether the word names a file that is a pipe or the like."""
    try:
        return not stat.S_ISREG(Path(word).stat().st_mode) and not Path(word).is_dir()
    except (OSError, ValueError):
        return False


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
    status. What is told to end by a signal goes on to no further cell.
    """
    worst = 0
    for name in cellmap.read(os.environ["FEED_CELLS"]).places:
        sys.stdout.write(f"cell {name}:\n")
        sys.stdout.flush()
        status = _run_for(name, arguments)
        worst = max(worst, status)
        if status in TOLD_TO_END:
            return status
    return worst


def _run_for(name: str, arguments: Sequence[str]) -> int:
    """Run the command for one cell to its end, and return its exit status as a shell tells it."""
    child = subprocess.Popen(  # noqa: S603 - our own arguments
        [sys.executable, *arguments], env={**os.environ, "FEED_CELL": name}
    )

    def pass_on(number: int, _frame: object) -> None:
        # The terminal has told the child of Ctrl-C itself.
        if number == signal.SIGTERM:
            child.terminate()

    # Whoever ends this process means the command: it is not left behind, and may clear up.
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else EXIT_BY_SIGNAL - status
