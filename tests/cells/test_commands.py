"""Commands and cells: about one, about each, or refused."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from eventbus import cells, identity
from eventbus.cells import Cell
from eventbus.database import locks
from eventbus.database.current import atomic
from eventbus.database.sql import fetch
from eventbus.models import CellIdentity
from feeds.models import Follow
from tests.cells.maps import DATABASES, manage
from tests.e2e.system import environment
from tests.eventbus.events import eventually

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)


def test_a_command_without_a_cell_is_about_each_of_them(
    two_cells: list[Cell], the_map: str, tmp_path: Path
) -> None:
    file = tmp_path / "follows.csv"
    file.write_text("follower,followee\n1,4\n4,1\n5,1\n")
    map_file = tmp_path / "cells.json"
    map_file.write_text(the_map)
    done = manage("import_follows", str(file), FEED_CELLS=str(map_file))
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "cell a:",
        "3 follows read, 1 new",
        "cell b:",
        "3 follows read, 2 new",
    ]
    for cell, followers in zip(two_cells, [{1}, {4, 5}], strict=True):
        with cells.on(cell):
            assert set(Follow.objects.values_list("follower_id", flat=True)) == followers
            Follow.objects.filter(follower_id=5).update(idle=True)
    done = manage("verify_feeds", FEED_CELLS=str(map_file))
    assert done.returncode == 1  # what b says
    assert "1 wrong follower counts or states" in done.stdout.partition("cell b:")[2]
    assert manage("verify_feeds", "--cell=a", FEED_CELLS=the_map).returncode == 0


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["run_fanout"], "Say whose worker it is, with --cell and one of a, b."),
        (["run_dlq", "--cell", "c"], "There is no cell c in FEED_CELLS, which has a, b."),
        (["dlq", "discard", "--group=5", "--reason", "x", "--yes"], "say which cell"),
        (["dlq", "replay", "--i", "5", "--yes"], "say which cell"),
        (["dlq", "show", "5"], "say which cell, with --cell and one of a, b."),
        (["run_fanout", "--cell"], "--cell needs the name of a cell."),
    ],
)
def test_what_nobody_can_tell_the_cell_of_is_refused(
    the_map: str, command: list[str], sentence: str
) -> None:
    done = manage(*command, FEED_CELLS=the_map)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr


def test_a_database_of_another_cell_is_refused(two_cells: list[Cell], the_map: str) -> None:
    """By workers, by commands and by `migrate`, before they have changed anything."""
    swapped = json.loads(the_map)
    first, second = swapped["cells"].values()
    first["database"], second["database"] = second["database"], first["database"]
    for command in ("run_fanout", "run_dlq", "prune", "migrate"):
        done = manage(command, "--cell", "a", FEED_CELLS=json.dumps(swapped))
        assert (done.returncode, done.stdout) == (1, "")
        assert "The database of cell a is that of cell b." in done.stderr
    alone = manage("run_fanout")
    assert "It is not set, but the database is that of cell a." in alone.stderr


@pytest.mark.parametrize(
    "command",
    [["erase_user", "1", "--yes"], ["export_user", "1"], ["import_posts", "/dev/null"], ["prune"]],
)
def test_without_a_map_a_command_does_nothing_on_the_database_of_a_cell(
    two_cells: list[Cell], command: list[str]
) -> None:
    done = manage(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("It is not set, but the database is that of cell a.\n")


def test_what_comes_through_a_pipe_is_not_read_for_one_cell_alone(
    two_cells: list[Cell], the_map: str
) -> None:
    """The first cell would have all of it, the others nothing."""
    done = manage(
        "import_follows", "/dev/stdin", stdin="follower,followee\n1,4\n", FEED_CELLS=the_map
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "give a file, or say which cell, with --cell and one of a, b." in done.stderr
    done = manage(
        *("import_follows", "/dev/stdin", "--cell", "a"),
        stdin="follower,followee\n1,4\n",
        FEED_CELLS=the_map,
    )
    assert done.stdout == "1 follow read, 1 new\n"


def test_a_command_that_is_told_to_end_ends_what_it_runs_for_a_cell(
    two_cells: list[Cell], the_map: str, tmp_path: Path
) -> None:
    """And does not begin with the next cell."""
    file = tmp_path / "follows.csv"
    file.write_text("follower,followee\n1,4\n")
    with atomic():
        locks.acquire_bulk_load()  # for which the import waits
        command = subprocess.Popen(
            [sys.executable, "manage.py", "import_follows", str(file)],
            env=environment() | {"FEED_CELLS": the_map},
            stdout=subprocess.PIPE,
            text=True,
        )
        eventually(_somebody_waits_for_the_import)
        [child] = psutil.Process(command.pid).children()
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 128 + signal.SIGTERM
        assert command.stdout
        assert command.stdout.read() == "cell a:\n"
        assert not child.is_running()
    assert not Follow.objects.exists()


def _somebody_waits_for_the_import() -> bool:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    [(count,)] = fetch(waiting)
    return bool(count)


def test_a_worker_whose_map_holds_others_than_the_database_is_refused(
    two_cells: list[Cell], the_map: str
) -> None:
    moved = json.loads(the_map)
    moved["cells"]["a"]["holds"] = "0-600"
    done = manage("run_fanout", "--cell", "a", FEED_CELLS=json.dumps(moved))
    assert done.returncode == 1
    assert "Cell a holds 0-600 here, and 0-511 by its database." in done.stderr


def test_a_database_that_is_of_no_cell_yet_is_claimed_by_migrate(
    two_cells: list[Cell], the_map: str
) -> None:
    a = two_cells[0]
    CellIdentity.objects.all().delete()
    assert "is of none yet" in identity.problem(a)
    assert manage("migrate", "--cell", "a", FEED_CELLS=the_map).returncode == 0
    assert identity.problem(a) == ""
