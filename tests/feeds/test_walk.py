"""The walk over all feeds: unread ones are put to rest, and no post is lost to a reader."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models.functions import Now
from pytest_django import Settings

from eventbus import cells
from eventbus.database import locks
from feeds import housekeeping, verification
from feeds.housekeeping import USERS_A_STEP, housekeeper
from feeds.models import RESTING, Feed, FeedEntry, Follow, Housekeeping
from tests.eventbus.events import eventually
from tests.factories import PostCreatedFactory, UserFollowedFactory, apply, follow_all
from tests.feeds.elsewhere import elsewhere, somebody_waits
from tests.feeds.model import feed, open_feed
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

READERS = range(2, 7)
EVERYBODY = cells.own().holds
LONG_AGO = "2025-01-01T00:00:00Z"


@pytest.fixture
def worker() -> Worker:
    """Five readers of an author."""
    follow_all(READERS, followee=1)
    return Worker()


@pytest.fixture
def unread(worker: Worker) -> Worker:
    """The same, and nobody has read a feed for long."""
    Feed.objects.update(last_read_at=LONG_AGO)
    return worker


def posts(worker: Worker, count: int, author: int = 1) -> list[int]:
    """Have the author post; return the ids, newest first."""
    facts = [PostCreatedFactory(author_id=author) for _ in range(count)]
    worker.process(*facts)
    return [fact.post_id for fact in reversed(facts)]


def step() -> None:
    """Take the next step of the walk, as if it were due."""
    Housekeeping.objects.update(due_at="2025-01-01T00:00:00Z")
    housekeeping.walk()


def walk_round() -> int:
    """Walk over all feeds once; return the number of steps that had feeds to look at."""
    Housekeeping.objects.update(last_user_id=0)
    steps = 0
    while True:
        step()
        if Housekeeping.objects.get().last_user_id == 0:
            return steps
        steps += 1


def resting() -> list[int]:
    return sorted(Feed.objects.filter(idle=True, floor=RESTING).values_list("user_id", flat=True))


# The walk -----------------------------------------------------------------------------------------


def test_the_walk_takes_the_feeds_in_steps_and_begins_again_at_the_end(worker: Worker) -> None:
    Feed.objects.ensure(range(1_000, 1_000 + 2 * USERS_A_STEP), EVERYBODY)
    assert walk_round() == 3
    places = []
    for _ in range(4):
        step()
        places.append(Housekeeping.objects.get().last_user_id)
    assert places == [
        1_000 + USERS_A_STEP - 7,
        1_000 + 2 * USERS_A_STEP - 7,
        1_000 + 2 * USERS_A_STEP - 1,
        0,
    ]


def test_another_process_goes_on_where_one_was_killed(unread: Worker) -> None:
    Feed.objects.ensure(range(1_000, 1_000 + USERS_A_STEP), EVERYBODY)
    Housekeeping.objects.create(last_user_id=3)
    try:
        with transaction.atomic():
            step()
            assert Housekeeping.objects.get().last_user_id > 3
            raise ConnectionResetError
    except ConnectionResetError:
        pass
    assert Housekeeping.objects.get().last_user_id == 3
    with elsewhere() as run:
        run(step).result()
    assert resting() == [4, 5, 6]
    assert Housekeeping.objects.get().last_user_id == 1_000 + USERS_A_STEP - 4


def test_between_two_steps_the_walk_sleeps_whoever_asks(unread: Worker) -> None:
    Housekeeping.objects.create(due_at=Now() + timedelta(hours=1))
    assert housekeeping.walk() == housekeeping.POLL_SECONDS
    assert (resting(), Housekeeping.objects.get().last_user_id) == ([], 0)
    Housekeeping.objects.update(due_at=Now())
    was_due_at = Housekeeping.objects.get().due_at
    assert housekeeping.walk() > 0
    assert resting() == [1, *READERS]
    assert Housekeeping.objects.get().due_at > was_due_at


def test_one_walks_at_a_time(unread: Worker) -> None:
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            Housekeeping.objects.select_for_update().get()
            assert run(housekeeping.walk).result() == housekeeping.POLL_SECONDS
        assert resting() == []
        run(step).result()
    assert resting() == [1, *READERS]


def test_a_feed_that_somebody_holds_is_left_for_the_next_round(unread: Worker) -> None:
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            Feed.objects.select_for_update().get(user_id=3)  # such as a follow by this reader
            run(step).result()
        assert resting() == [1, 2, 4, 5, 6]
    walk_round()
    assert resting() == [1, *READERS]


def test_the_walk_waits_for_an_import(unread: Worker) -> None:
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            locks.acquire_bulk_load()
            walking = run(step)
            eventually(somebody_waits)
            assert resting() == []
        walking.result()
    assert resting() == [1, *READERS]


# Rest ---------------------------------------------------------------------------------------------


def test_feeds_nobody_has_read_for_long_are_put_to_rest(worker: Worker, settings: Settings) -> None:
    settings.FEED_IDLE_DAYS = 30
    written = posts(worker, 10)
    for user, days in ((2, 29), (3, 31), (4, 400)):
        Feed.objects.filter(user_id=user).update(last_read_at=Now() - timedelta(days=days))
    walk_round()
    assert resting() == [3, 4]
    assert set(Follow.objects.filter(idle=True).values_list("follower_id", flat=True)) == {3, 4}
    assert [feed(user) for user in (1, *READERS)] == [written] * 6
    assert verification.verify().equal


def test_a_shorter_time_puts_more_feeds_to_rest_and_a_longer_one_wakes_none(
    worker: Worker, settings: Settings
) -> None:
    Feed.objects.filter(user_id__in=[2, 3]).update(last_read_at=Now() - timedelta(days=10))
    settings.FEED_IDLE_DAYS = 9
    walk_round()
    assert Feed.objects.filter(idle=True).count() == 2
    settings.FEED_IDLE_DAYS = 90
    walk_round()
    assert Feed.objects.filter(idle=True).count() == 2


def test_who_follows_while_the_feed_is_put_to_rest_is_left_out_of_the_fan_out_too(
    worker: Worker,
) -> None:
    apply(PostCreatedFactory(author_id=9))
    Feed.objects.filter(user_id=2).update(last_read_at="2025-01-01T00:00:00Z")
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            locks.join_workers()
            housekeeping._lock_next(0)
            housekeeping.put_to_rest([2])
            following = run(worker.process, UserFollowedFactory(follower_id=2, followee_id=9))
            eventually(somebody_waits)
        following.result()
    assert Follow.objects.get(follower_id=2, followee_id=9).idle
    assert not FeedEntry.objects.filter(user_id=2).exists()
    assert verification.verify().equal


def test_the_housekeeper_of_a_worker_puts_to_rest_and_rebuilds_by_itself(worker: Worker) -> None:
    written = posts(worker, 11)
    Feed.objects.filter(user_id=2).update(last_read_at=LONG_AGO)
    Housekeeping.objects.create()
    with housekeeper():
        eventually(lambda: resting() == [2])
        assert open_feed(2)[0] == written
        eventually(lambda: Feed.objects.get(user_id=2).floor == 0)
    assert open_feed(2)[0] == feed(2) == written
    assert verification.verify().equal
