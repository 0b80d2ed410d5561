"""A cell is split while posts, changes of all kinds and reads go on: its database is copied, the copy
goes on from its own offsets, slots are flipped, and what is left of the readers who went is deleted.
"""

from pathlib import Path
from typing import Any

import pytest

from eventbus import cells, kafka
from eventbus.models import IdempotencyKey
from feeds import verification
from tests.cells.load import Load
from tests.cells.maps import DATABASES
from tests.cells.split import FLIP, Split, a_graph, import_into, position
from tests.cells.test_handlers import assert_no_feed_of_others
from tests.cells.test_processes import History, all_have_processed, whole_feed
from tests.crash.conftest import fresh_broker as fresh_broker
from tests.e2e.system import running, wait_until

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)

USERS = range(1, 301)
# Workers look at the map every three seconds.
NOTICE = "--notice=3.5"


@pytest.mark.e2e
def test_a_split_under_load_loses_nothing_and_shows_nobody_an_older_feed(
    split: Split, tmp_path: Path
) -> None:
    kafka.create_topics()
    follows = a_graph(USERS)
    import_into("a", follows)
    history = History(follows)
    load = Load(history, USERS, DATABASES)
    moving = next(user for user in USERS if cells.slot_of(user) >= 512)
    # From before anybody knew of b.
    with cells.on(cells.every()["a"]):
        IdempotencyKey.objects.create(
            user_id=moving, key="k", fingerprint="", event_id=1, object_id=2
        )

    with running(tmp_path) as system:

        def worker(cell: str) -> Any:
            return system.command("run_fanout", "--cell", cell, FEED_CELLS=str(split.file))

        a = worker("a")
        with load.going_on():
            wait_until(lambda: load.pages > 50 and position("a") > 0)
            split.copy_database()
            a.kill()
            split.done("adopt", "b")
            before = position("a"), position("b")
            assert "events behind" in split.refused(*FLIP, "--wait=0.1")
            b = worker("b")
            a = worker("a")
            wait_until(lambda: position("a") > before[0] and position("b") > before[1])
            load.is_flipping = True
            split.done(*FLIP)
            assert "serves slots 512-1023 already" in split.done(*FLIP)
            b.kill()
            b = worker("b")
            split.done("tidy", "--dry-run")
            tidied = split.done("tidy", NOTICE)
            assert "follows" in tidied
        split.go_by_file()
        two = list(cells.every().values())
        wait_until(lambda: all_have_processed(two, history))
        assert [a.stop(), b.stop()] == [0, 0]

    assert load.older == []
    split.done("tidy", "--notice=0.1")  # what a worker has left that was late to notice
    assert split.done("tidy", "--notice=0.1").count(" 0 follows") == 2
    assert split.done("status").count("0 events to come, 0 dead letters") == 2
    expected = history.feeds(USERS)
    for cell in two:
        with cells.on(cell):
            assert cell.holds == cell.slots
            for reader in filter(cell.serves, USERS):
                assert whole_feed(reader) == expected[reader]
            assert verification.verify().equal
            assert_no_feed_of_others(cell)
            assert IdempotencyKey.objects.filter(user_id=moving).exists() == cell.serves(moving)
