"""The walk over all feeds: long feeds are trimmed, unread ones put to rest, and no post is lost to a reader."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models.functions import Now
from pytest_django import Settings

from eventbus import locks
from feeds import cache, housekeeping, verification
from feeds.housekeeping import USERS_A_STEP, housekeeper
from feeds.models import RESTING, Feed, FeedEntry, Follow, Housekeeping
from tests.eventbus.events import counted, eventually
from tests.factories import PostCreatedFactory, PostDeletedFactory, UserFollowedFactory, apply, follow_all
from tests.feeds.elsewhere import elsewhere, somebody_waits
from tests.feeds.model import feed, open_feed
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

CAP = 10
READERS = range(2, 7)


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """Five readers of an author."""
    settings.FEED_MAX_ENTRIES = CAP
    follow_all(READERS, followee=1)
    return Worker()


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


def rows(user: int = 2) -> int:
    return FeedEntry.objects.filter(user_id=user).count()


def floor(user: int = 2) -> int:
    return Feed.objects.get(user_id=user).floor


# Trimming -----------------------------------------------------------------------------------------------------


def test_a_feed_keeps_its_newest_rows_and_every_post_can_still_be_read(worker: Worker) -> None:
    written = posts(worker, 35)
    before = counted("feed_entries_trimmed_total")
    walk_round()
    assert [rows(user) for user in (1, *READERS)] == [CAP] * 6
    assert counted("feed_entries_trimmed_total") - before == 25 * 6
    assert floor() == written[CAP]
    assert [feed(user) for user in (1, *READERS)] == [written] * 6
    assert verification.verify().equal


def test_trimming_again_changes_nothing_until_there_is_more(worker: Worker) -> None:
    written = posts(worker, CAP + 1)
    walk_round()
    first = floor()
    assert (first, rows()) == (written[CAP], CAP)
    walk_round()
    assert (floor(), rows()) == (first, CAP)
    written = posts(worker, 1) + written
    walk_round()
    assert (floor(), rows()) == (written[CAP], CAP)
    assert feed(2) == written


def test_a_feed_within_its_cap_is_left_alone(worker: Worker) -> None:
    posts(worker, CAP)
    walk_round()
    assert (floor(), rows()) == (0, CAP)


def test_what_arrives_late_below_the_floor_is_read_and_its_row_dropped(worker: Worker) -> None:
    late = PostCreatedFactory(author_id=1)
    written = posts(worker, CAP + 5)
    walk_round()
    worker.process(late)
    assert rows() == CAP + 1
    assert feed(2) == [*written, late.post_id]
    walk_round()
    assert rows() == CAP
    assert feed(2) == [*written, late.post_id]


def test_a_post_deleted_below_the_floor_is_in_no_feed_and_above_it_makes_room_for_none(worker: Worker) -> None:
    written = posts(worker, CAP + 5)
    walk_round()
    worker.process(*[PostDeletedFactory(author_id=1, post_id=post) for post in (written[0], written[-1])])
    walk_round()
    assert rows() == CAP - 1
    assert feed(2) == written[1:-1]
    assert verification.verify().equal


def test_a_cached_page_stays_right_when_its_feed_is_trimmed_under_it(worker: Worker) -> None:
    written = posts(worker, 35)
    assert open_feed(2) == (written[:20], "miss")
    walk_round()
    assert open_feed(2) == (written[:20], "hit")
    cache.invalidate([2])
    assert open_feed(2) == (written[:20], "miss")


def test_a_step_deletes_a_bounded_number_of_rows_and_the_next_round_the_rest(
    worker: Worker, settings: Settings
) -> None:
    settings.FEED_BATCH_MAX_ROWS = 5 * USERS_A_STEP  # so 5 rows of each feed
    written = posts(worker, CAP + 12)
    left = []
    for _ in range(3):
        walk_round()
        left.append(rows())
        assert feed(2) == written
        assert verification.verify().equal
    assert left == [CAP + 7, CAP + 2, CAP]


# The walk -----------------------------------------------------------------------------------------------------


def test_the_walk_takes_the_feeds_in_steps_and_begins_again_at_the_end(worker: Worker) -> None:
    Feed.objects.ensure(range(1_000, 1_000 + 2 * USERS_A_STEP))
    assert walk_round() == 3
    places = []
    for _ in range(4):
        step()
        places.append(Housekeeping.objects.get().last_user_id)
    assert places == [1_000 + USERS_A_STEP - 7, 1_000 + 2 * USERS_A_STEP - 7, 1_000 + 2 * USERS_A_STEP - 1, 0]


def test_another_process_goes_on_where_one_was_killed(worker: Worker) -> None:
    posts(worker, CAP + 1)
    Feed.objects.ensure(range(1_000, 1_000 + USERS_A_STEP))
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
    assert [rows(user) for user in (2, 3, 4, 5, 6)] == [CAP + 1, CAP + 1, CAP, CAP, CAP]
    assert Housekeeping.objects.get().last_user_id == 1_000 + USERS_A_STEP - 4


def test_between_two_steps_the_walk_sleeps_whoever_asks(worker: Worker) -> None:
    posts(worker, CAP + 1)
    Housekeeping.objects.create(due_at=Now() + timedelta(hours=1))
    assert housekeeping.walk() == housekeeping.POLL_SECONDS
    assert (rows(), Housekeeping.objects.get().last_user_id) == (CAP + 1, 0)
    Housekeeping.objects.update(due_at=Now())
    was_due_at = Housekeeping.objects.get().due_at
    assert housekeeping.walk() > 0
    assert rows() == CAP
    assert Housekeeping.objects.get().due_at > was_due_at


def test_one_walks_at_a_time(worker: Worker) -> None:
    posts(worker, CAP + 1)
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            Housekeeping.objects.select_for_update().get()
            assert run(housekeeping.walk).result() == housekeeping.POLL_SECONDS
        assert rows() == CAP + 1
        run(step).result()
    assert rows() == CAP


def test_a_feed_that_somebody_holds_is_left_for_the_next_round(worker: Worker) -> None:
    posts(worker, CAP + 1)
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            Feed.objects.select_for_update().get(user_id=3)  # such as a follow by this reader
            run(step).result()
        assert [rows(user) for user in (2, 3, 4)] == [CAP, CAP + 1, CAP]
    walk_round()
    assert rows(3) == CAP


def test_the_walk_waits_for_an_import(worker: Worker) -> None:
    posts(worker, CAP + 1)
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            locks.acquire_bulk_load()
            walking = run(step)
            eventually(somebody_waits)
            assert rows() == CAP + 1
        walking.result()
    assert rows() == CAP


# Rest ---------------------------------------------------------------------------------------------------------


def test_feeds_nobody_has_read_for_long_are_put_to_rest_and_all_their_rows_dropped(
    worker: Worker, settings: Settings
) -> None:
    settings.FEED_IDLE_DAYS = 30
    written = posts(worker, CAP)
    for user, days in ((2, 29), (3, 31), (4, 400)):
        Feed.objects.filter(user_id=user).update(last_read_at=Now() - timedelta(days=days))
    walk_round()
    assert set(Feed.objects.filter(idle=True).values_list("user_id", "floor")) == {(3, RESTING), (4, RESTING)}
    assert set(Follow.objects.filter(idle=True).values_list("follower_id", flat=True)) == {3, 4}
    assert [rows(user) for user in (1, *READERS)] == [CAP, CAP, 0, 0, CAP, CAP]
    assert [feed(user) for user in (1, *READERS)] == [written] * 6
    assert verification.verify().equal


def test_a_shorter_time_puts_more_feeds_to_rest_and_a_longer_one_wakes_none(worker: Worker, settings: Settings) -> None:
    Feed.objects.filter(user_id__in=[2, 3]).update(last_read_at=Now() - timedelta(days=10))
    settings.FEED_IDLE_DAYS = 9
    walk_round()
    assert Feed.objects.filter(idle=True).count() == 2
    settings.FEED_IDLE_DAYS = 90
    walk_round()
    assert Feed.objects.filter(idle=True).count() == 2


def test_who_follows_while_the_feed_is_put_to_rest_is_left_out_of_the_fan_out_too(worker: Worker) -> None:
    apply(PostCreatedFactory(author_id=9))
    Feed.objects.filter(user_id=2).update(last_read_at="2025-01-01T00:00:00Z")
    Housekeeping.objects.create()
    with elsewhere() as run:
        with transaction.atomic():
            locks.join_workers()
            housekeeping._lock_next(0)
            housekeeping.tidy([2])
            following = run(worker.process, UserFollowedFactory(follower_id=2, followee_id=9))
            eventually(somebody_waits)
        following.result()
    assert Follow.objects.get(follower_id=2, followee_id=9).idle
    assert rows() == 0
    assert verification.verify().equal


def test_the_housekeeper_of_a_worker_trims_and_rebuilds_by_itself(worker: Worker) -> None:
    written = posts(worker, CAP + 1)
    Feed.objects.filter(user_id=2).update(last_read_at="2025-01-01T00:00:00Z")
    Housekeeping.objects.create()
    with housekeeper():
        eventually(lambda: Feed.objects.get(user_id=2).idle and rows(3) == CAP)
        assert open_feed(2)[0] == written
        eventually(lambda: not Feed.objects.get(user_id=2).idle and rows() == CAP)
    assert open_feed(2)[0] == feed(2) == written
    assert verification.verify().equal
