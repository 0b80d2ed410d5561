"""Two cells become one, which is made anew from the log while all goes on: so a cell is rebuilt too."""

import json
from pathlib import Path
from typing import Any

import pytest

from eventbus import cells, kafka
from eventbus.models import IdempotencyKey
from feeds import verification
from tests.cells.load import Load
from tests.cells.maps import DATABASES, THIRD, manage
from tests.cells.split import ALL, MapFile, a_graph, import_into, position
from tests.cells.test_processes import History, all_have_processed, whole_feed
from tests.crash.conftest import fresh_broker as fresh_broker
from tests.e2e.system import running, wait_until

THREE_DATABASES = [*DATABASES, THIRD]

pytestmark = pytest.mark.django_db(transaction=True, databases=THREE_DATABASES)

USERS = range(1, 301)
FROM_A = ("flip", "--from=a", "--to=c", "--slots=0-511")
FROM_B = ("flip", "--from=b", "--to=c", "--slots=512-1023")


@pytest.mark.e2e
def test_two_cells_become_one_that_is_made_from_the_log(
    three_cells: MapFile, tmp_path: Path
) -> None:
    kafka.create_topics()
    follows = a_graph(USERS)
    for name in ("a", "b"):
        import_into(name, follows)
    history = History(follows)
    load = Load(history, USERS, THREE_DATABASES)
    user = next(user for user in USERS if cells.of(user).name == "b")
    with cells.on(cells.of(user)):
        IdempotencyKey.objects.create(
            user_id=user, key="k", fingerprint="", event_id=1, object_id=2
        )

    with running(tmp_path) as system:

        def worker(cell: str) -> Any:
            return system.command("run_fanout", "--cell", cell, FEED_CELLS=str(three_cells.file))

        a, b = worker("a"), worker("b")
        with load.going_on():
            wait_until(lambda: load.rounds > 20 and position("a") > 0 and position("b") > 0)
            assert "events behind cell a" in three_cells.refused(*FROM_A, "--wait=0.1")
            c = worker("c")
            wait_until(lambda: position("c") > 0)
            c.kill()
            c = worker("c")
            wait_until(lambda: position("c") >= position("a"))
            # What was imported is not in the log.
            assert "lacks" in three_cells.refused(*FROM_A)
            import_into("c", follows)
            load.is_flipping = True
            three_cells.done(*FROM_A)
            three_cells.done(*FROM_B)
        three_cells.go_by_file()
        three = list(cells.every().values())
        wait_until(lambda: all_have_processed(three, history))
        assert [a.stop(), b.stop(), c.stop()] == [0, 0, 0]

    assert load.older == []
    expected = history.feeds(USERS)
    merged = cells.every()["c"]
    with cells.on(merged):
        assert {reader: whole_feed(reader) for reader in USERS} == expected
        assert verification.verify().equal
        assert IdempotencyKey.objects.filter(user_id=user, key="k").exists()
    # The others are taken out of the map.
    document = json.loads(three_cells.file.read_text())
    c_alone = document["cells"]["c"] | {"slots": ALL}
    alone = json.dumps({"ids": "c", "cells": {"c": c_alone}})
    status = manage("cells", "status", FEED_CELLS=alone)
    assert status.stdout.splitlines() == [
        "cell c: serves 0-1023, holds 0-1023",
        "  0 events to come, 0 dead letters",
    ]
