"""Everything at once: workers, readers, rebuilds and rest on the same few users, and every feed is
right.

Which thread does what is drawn from a seed that is printed; what happens between them is up to the
machine.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connection, transaction
from pytest_django import Settings

from eventbus import retry
from eventbus.database import locks
from eventbus.ids.snowflake import milliseconds_of
from eventbus.models import Erasure
from feeds import erasure, fanout, housekeeping, partitions, verification
from feeds.handlers import FeedFact, FeedHandlers
from feeds.models import Feed, Horizon, Housekeeping
from feeds.read import here
from feeds.rebuild import rebuild
from posts.events import PostCreated
from tests.feeds.model import Step, expected_feed, expected_posts, feed, history, shown_post
from tests.feeds.partitioning import lay_out, partitions_undone
from tests.feeds.test_processing import edits_through_the_cache, read_through_the_cache
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

USERS = range(1, 13)
STEPS = 3_000
SECONDS = 5.0
HOUSEKEEPING = ["rebuild", "come back", "come back", "queue", "walk", "rest"]
SLOWEST_COMMIT_SECONDS = 0.015


class Log:
    """The events of the whole run; workers take them in turns, and what they have taken is what
    counts.
    """

    def __init__(self, chance: random.Random) -> None:
        kinds = ["post"] * 5 + ["edit", "edit", "delete", "delete"] + ["follow"] * 3 + ["unfollow"]
        kinds += ["follow", "mute", "unmute", "block", "unblock"]
        # Rarely: what an erasure takes away is tested no more.
        kinds = kinds * 20 + ["erase"]
        self._facts = history(self._step(chance, kind) for kind in chance.choices(kinds, k=STEPS))
        self._lock = threading.Lock()
        self.taken = 0

    @staticmethod
    def _step(chance: random.Random, kind: str) -> Step:
        # Deleted or edited is one of the author's latest posts, which rebuilds and pages are after.
        return (
            kind,
            chance.choice(USERS),
            -chance.randint(1, 4) if kind in ("delete", "edit") else chance.choice(USERS),
        )

    @property
    def facts(self) -> Sequence[Any]:
        """Return all that was taken so far."""
        return self._facts[: self.taken]

    def take(self, count: int, chance: random.Random) -> Sequence[Any]:
        """Take the next `count` facts, in any order, and some that were taken before."""
        with self._lock:
            batch = self._facts[self.taken : self.taken + count]
            again = chance.sample(self.facts, min(self.taken, chance.choice([0, 0, 0, 2])))
            self.taken += len(batch)
        chance.shuffle(batch)
        return [*batch, *again] if batch else []


class Calendar:
    """Lets a month pass for a reader, but not within a rebuild, which takes moments."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rebuilding: Counter[int] = Counter()

    @contextmanager
    def rebuilding(self, users: Sequence[int]) -> Iterator[None]:
        with self._lock:
            self._rebuilding.update(users)
        try:
            yield
        finally:
            with self._lock:
                self._rebuilding.subtract(users)

    def let_a_month_pass(self, user: int) -> None:
        with self._lock:
            if self._rebuilding[user]:
                return
            with transaction.atomic():
                locks.join_workers()
                list(Feed.objects.select_for_update().filter(user_id=user))
                Feed.objects.filter(user_id=user).update(last_read_at="2025-01-01T00:00:00Z")
                housekeeping.put_to_rest([user])
            here.pages.invalidate([user])  # its page is long gone by then


class SlowToCommit(FeedHandlers):
    """Handlers that leave others time between their statements and the commit."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def apply(
        self, facts: Sequence[FeedFact], *, careful: bool, resume_after: int | None
    ) -> int | None:
        more = super().apply(facts, careful=careful, resume_after=resume_after)
        time.sleep(self._chance.uniform(0, SLOWEST_COMMIT_SECONDS))
        return more


class Run:
    """One run of all threads against the same tables."""

    def __init__(self, seed: int) -> None:
        print(f"seed {seed}")  # noqa: T201 - pytest shows it on failure
        self.chance = random.Random(seed)
        self.log = Log(self.chance)
        self.calendar = Calendar()
        self.workers: list[Worker] = []
        self.done: Counter[str] = Counter()
        self._deadline = time.monotonic() + SECONDS
        self._stopped = threading.Event()

    def work(self, chance: random.Random) -> None:
        worker = Worker(SlowToCommit(chance))
        self.workers.append(worker)
        while time.monotonic() < self._deadline and (
            batch := self.log.take(chance.choice([1, 2, 5, 20]), chance)
        ):
            worker.process(*batch)
            self.done["batch"] += 1
        self._stopped.set()

    def keep_house(self, chance: random.Random) -> None:
        while not self._stopped.is_set():
            user, act = (
                chance.choice(USERS),
                chance.choice([*HOUSEKEEPING, "erase", "erase"]),
            )
            try:
                self._keep_house(act, user)
            except OperationalError as error:
                if not retry.is_transient(error):
                    raise
                act = "given up"  # as housekeeping does, until its next round
            self.done[act] += 1

    def _keep_house(self, act: str, user: int) -> None:
        match act:
            case "rebuild":
                with self.calendar.rebuilding([user]):
                    rebuild([user])
            case "come back":
                self.calendar.let_a_month_pass(user)
                self._keep_house("rebuild", user)
            case "queue":
                with self.calendar.rebuilding(USERS):
                    housekeeping.rebuild_wanted()
            case "walk":
                Housekeeping.objects.update(due_at="2025-01-01T00:00:00Z")
                housekeeping.walk()
            case "rest":
                self.calendar.let_a_month_pass(user)
            case "erase":
                erasure.erase_part()
                fanout.withdraw_part()

    def read(self, chance: random.Random) -> None:
        while not self._stopped.is_set():
            page = read_through_the_cache(chance.choice(USERS))
            assert page == sorted(set(page), reverse=True)
            self.done["read"] += 1

    def verify(self, chance: random.Random) -> None:
        while not self._stopped.is_set():
            report = verification.verify(USERS)
            assert report.equal, report
            self.done["proof"] += 1
            self._stopped.wait(chance.uniform(0, SLOWEST_COMMIT_SECONDS))

    def switch_strategies(self, chance: random.Random) -> None:
        # Into what the fixture has laid over the settings: to lay over more would leave other threads
        # without any for a moment.
        while not self._stopped.wait(0.1):
            django_settings.FEED_STRATEGY = chance.choice(["push", "hybrid", "hybrid", "pull"])
            django_settings.FEED_PUSH_MAX_FOLLOWERS = chance.choice([3, 6])

    def keep_partitions(self, chance: random.Random) -> None:
        while not self._stopped.wait(chance.uniform(0, 0.05)):
            newest = max((fact.event_id for fact in self.log.facts), default=0)
            partitions.keep_up(milliseconds_of(newest))
            self.done["partition kept"] = len(partitions.partitions())
            self.done["horizon raised"] += Horizon.objects.exclude(
                post_id__lte=self.done["horizon"]
            ).count()
            self.done["horizon"] = Horizon.objects.get().post_id

    def together(self, *acts: Callable[[random.Random], None]) -> None:
        """Do all `acts` at once, each in a thread with its own connection, until the time is up or
        one fails.
        """

        def in_a_thread(act: Callable[[random.Random], None], chance: random.Random) -> None:
            try:
                act(chance)
            finally:
                self._stopped.set()
                self._deadline = 0.0
                connection.close()

        with ThreadPoolExecutor(len(acts)) as pool:
            threads = [
                pool.submit(in_a_thread, act, random.Random(self.chance.random())) for act in acts
            ]
        for thread in threads:
            thread.result()


def assert_all_right(run: Run) -> None:
    print(dict(run.done), run.log.taken)  # noqa: T201 - pytest shows it on failure
    while Erasure.objects.filter(finished_at=None).exists():
        Erasure.objects.update(due_at="2025-01-01T00:00:00Z")
        erasure.erase_part()
        fanout.withdraw_part()
    assert [worker.dead_letters for worker in run.workers] == [[]] * len(run.workers)
    report = verification.verify()
    assert report.equal, report
    expected = {user: expected_feed(run.log.facts, user) for user in USERS}
    assert {user: feed(user) for user in USERS} == expected
    assert {user: read_through_the_cache(user) for user in USERS} == {
        user: posts[:3] for user, posts in expected.items()
    }
    posts = expected_posts(run.log.facts)
    for post in (fact for fact in run.log.facts if isinstance(fact, PostCreated)):
        assert shown_post(post.post_id) == posts.get(post.post_id)
    for user in USERS:
        for post_id, edited_at in edits_through_the_cache(user).items():
            assert posts[post_id].edited_at == edited_at
    assert run.done["batch"] > 10
    assert run.done["come back"] > 0


@pytest.fixture
def run(settings: Settings) -> Run:
    settings.FEED_STRATEGY = "push"
    return Run(random.randrange(2**32))


@pytest.mark.parametrize("cap", [8, 800])
def test_whatever_happens_at_once_every_feed_is_right_at_any_moment_and_in_the_end(
    run: Run, settings: Settings, cap: int
) -> None:
    settings.FEED_MAX_ENTRIES = cap
    run.together(run.work, run.work, run.work, run.keep_house, run.keep_house, run.read, run.verify)
    assert_all_right(run)
    assert run.done["proof"] > 0


def test_while_partitions_are_made_and_dropped_every_feed_is_right(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fast as posts come: workers wait for partitions now and then."""
    settings.FEED_PARTITIONS = 2
    for name in ("FIRST_MS", "SHORTEST_MS", "LONGEST_MS"):
        monkeypatch.setattr(partitions, name, 20_000)
    with partitions_undone():
        lay_out(0, run.log._facts[0].event_id)
        run.together(run.work, run.work, run.keep_house, run.read, run.verify, run.keep_partitions)
        assert_all_right(run)
    assert run.done["horizon raised"] > 3


def test_with_posts_in_parts_and_strategies_switched_every_feed_is_right_in_the_end(
    run: Run, settings: Settings
) -> None:
    settings.FEED_BATCH_MAX_ROWS, settings.FEED_MAX_ENTRIES = 3, 8
    run.together(
        run.work,
        run.work,
        run.work,
        run.keep_house,
        run.keep_house,
        run.read,
        run.switch_strategies,
    )
    assert_all_right(run)
