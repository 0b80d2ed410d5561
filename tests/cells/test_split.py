"""A cell is split while posts, follows and reads go on: its database is copied, the copy goes on from
its own offsets, slots are flipped, and what is left of the readers who went is deleted.
"""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from eventbus import cells, kafka
from eventbus.models import ConsumerOffset, IdempotencyKey
from feeds import verification
from feeds.timeline import Reader
from posts.pagination import START
from tests.cells.maps import DATABASES, manage
from tests.cells.split import FLIP, Split
from tests.cells.test_handlers import assert_no_feed_of_others
from tests.cells.test_processes import History, about, all_have_processed, whole_feed
from tests.crash.conftest import fresh_broker as fresh_broker
from tests.e2e.system import running, wait_until
from tests.factories import UserFollowedFactory

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)

USERS = range(1, 301)
NOTICE = "--notice=5"


class Load:
    """Posts and follows that go on, and readers who read."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.newest: dict[int, int] = {}  # that a reader has seen before the flip
        self.older: list[tuple[int, int]] = []
        self.is_flipping = False
        self.pages = 0
        self._over = threading.Event()

    def publish(self) -> None:
        chance = random.Random(18)
        while not self._over.wait(0.05):
            self.history.post(chance.choices(USERS, k=5))
            pair = chance.choice(USERS), chance.choice(USERS)
            if pair[0] != pair[1] and pair not in self.history.follows:
                follow = about(UserFollowedFactory, follower_id=pair[0], followee_id=pair[1])
                self.history.publish([follow])
                self.history.follows.add(pair)

    def read(self) -> None:
        """Read as the API does: in the cell that the map names now."""
        chance = random.Random(81)
        while not self._over.wait(0.01):
            cells.refresh()
            reader = chance.choice(USERS)
            was_flipping = self.is_flipping
            with cells.on(cells.of(reader)):
                page = Reader(reader).read(START, 10)
            self.pages += 1
            newest = page[0].id if page else 0
            if newest < self.newest.get(reader, 0):
                self.older.append((reader, newest))
            if not was_flipping and not self.is_flipping:
                self.newest[reader] = max(newest, self.newest.get(reader, 0))
        for alias in DATABASES:
            connections[alias].close()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        with ThreadPoolExecutor(2) as threads:
            going = [threads.submit(self.publish), threads.submit(self.read)]
            try:
                yield
            finally:
                self._over.set()
            for thread in going:
                thread.result()


@pytest.mark.e2e
def test_a_split_under_load_loses_nothing_and_shows_nobody_an_older_feed(
    split: Split, tmp_path: Path
) -> None:
    kafka.create_topics()
    chance = random.Random(5)
    follows = {(chance.choice(USERS), chance.choice(USERS)) for _ in range(3_000)}
    follows = {pair for pair in follows if pair[0] != pair[1]}
    graph = tmp_path / "follows.csv"
    lines = [f"{follower},{followee}" for follower, followee in sorted(follows)]
    graph.write_text("\n".join(["follower,followee", *lines]))
    by_file = {"FEED_CELLS": str(split.file)}
    imported = manage("import_follows", str(graph), "--cell=a", **by_file)
    assert imported.returncode == 0, imported.stderr
    history = History(follows)
    load = Load(history)
    moving = next(user for user in USERS if cells.slot_of(user) >= 512)

    with running(tmp_path) as system:

        def worker(cell: str) -> Any:
            return system.command("run_fanout", "--cell", cell, **by_file)

        a = worker("a")
        with load.going_on():
            wait_until(lambda: load.pages > 50 and position("a") > 0)
            split.copy_database()
            a.kill()
            split.done("adopt", "b")
            before = position("a"), position("b")
            b = worker("b")
            a = worker("a")
            wait_until(lambda: position("a") > before[0] and position("b") > before[1])
            IdempotencyKey.objects.create(
                user_id=moving, key="k", fingerprint="", event_id=1, object_id=2
            )
            load.is_flipping = True
            split.done("split-check", *FLIP[1:])
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


def position(name: str) -> int:
    """Return how many records of the log the cell has processed."""
    with cells.on(cells.every()[name]):
        mine = ConsumerOffset.objects.filter(group=kafka.fanout_group())
        return sum(mine.values_list("next_offset", flat=True))
