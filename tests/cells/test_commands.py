"""Commands and cells: about one, about each, or refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from eventbus import cells, identity
from eventbus.cells import Cell
from eventbus.models import CellIdentity
from feeds.models import Follow
from tests.cells.maps import DATABASES, manage
from tests.e2e.system import environment
from tests.eventbus.dead_letter_factories import an_entry

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_leaves_nobody_behind_and_begins_with_no_other_cell(
    two_cells: list[Cell], the_map: str, number: signal.Signals
) -> None:
    an_entry()
    started = subprocess.Popen(
        [sys.executable, "manage.py", "dlq", "discard", "--all", "--reason=tried"],
        env=environment() | {"FEED_CELLS": the_map},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert started.stdout
    assert [started.stdout.readline() for _ in range(2)] == [
        "cell a:\n",
        "1 dead letter to discard\n",
    ]
    [child] = psutil.Process(started.pid).children()
    if number == signal.SIGINT:  # as a terminal does, to both
        os.killpg(started.pid, number)
    else:
        started.send_signal(number)
    rest, _ = started.communicate(timeout=60)
    assert "cell b" not in rest
    assert not child.is_running()
    assert started.returncode == 128 + number


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["run_fanout"], "Say whose worker it is, with --cell and one of a, b."),
        (["run_dlq", "--cell", "c"], "There is no cell c in FEED_CELLS, which has a, b."),
        (["dlq", "discard", "--group=5", "--reason", "x", "--yes"], "say which cell"),
        (["dlq", "replay", "--i", "5", "--yes"], "say which cell"),
        (["dlq", "show", "5"], "say which cell, with --cell and one of a, b."),
        (["run_fanout", "--cell"], "--cell needs the name of a cell."),
        (["import_follows", "/dev/null"], "A pipe can be read only once: give a file, or say"),
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
