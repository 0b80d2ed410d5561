"""Batches through the real processor: whatever is delivered, in whatever order and however often,
ends as the join.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from eventbus.exceptions import InvalidEvent, WorkerStopping
from eventbus.models import ProcessedEvent
from feeds import fanout, housekeeping, verification
from feeds.handlers import FeedFact, FeedHandlers
from feeds.models import Feed, FeedEntry, Withdrawal
from feeds.read import here
from feeds.read.page import CachedPage
from feeds.rebuild import rebuild
from feeds.timeline import Reader
from posts.events import PostCreated
from posts.models import Post
from posts.pagination import START
from tests.eventbus.events import counted, eventually
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    follow_all,
)
from tests.feeds.elsewhere import elsewhere
from tests.feeds.model import Step, expected_feed, feed, history, some_step, with_repetitions
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

NUMBERS = range(1, 6)

steps = some_step(NUMBERS)

# Users of one example each, so that the tables need not be emptied between examples.
_first_users = itertools.count(10, 10)


class ForgetfulWorker(Worker):
    """Is stopped now and then in the middle of a batch, gets batches again, and sees readers fill
    the cache.
    """

    def __init__(self, users: Sequence[int], chance: random.Random) -> None:
        super().__init__()
        self.users = users
        self.chance = chance
        self.stops = self._may_stop
        self._stops_left = 0

    def deliver(self, facts: Sequence[Any]) -> None:
        """Process facts in random batches, some of them twice."""
        for batch in self._batches(facts):
            for _ in range(self.chance.choice([1, 1, 1, 2])):
                read_through_the_cache(self.chance.choice(self.users))
                self._process_to_its_end(batch)
            self._keep_house()
            for user in self.users:
                assert read_through_the_cache(user) == feed(user)[:3], (
                    "a page in the cache is stale"
                )

    def _keep_house(self) -> None:
        """Do at random what happens beside the events, none of which may change a feed."""
        user = self.chance.choice(self.users)
        match self.chance.choice(["withdraw", "rest", "rebuild", "return", "strategy"]):
            case "withdraw":
                fanout.withdraw_part()
            case "rest":
                put_to_rest(user)
            case "rebuild":
                rebuild([user])
            case "return":
                read_through_the_cache(user)
                housekeeping.rebuild_wanted()
            case "strategy":
                django_settings.FEED_STRATEGY = self.chance.choice(["push", "pull", "hybrid"])
                django_settings.FEED_PUSH_MAX_FOLLOWERS = self.chance.choice([1, 2, 3])

    def _may_stop(self) -> bool:
        if self._stops_left and self.chance.random() < 0.3:
            self._stops_left -= 1
            return True
        return False

    def _process_to_its_end(self, batch: Sequence[Any]) -> None:
        self._stops_left = 20  # else a batch of many parts would hardly ever come to its end
        while True:
            try:
                return self.process(*batch)
            except WorkerStopping:
                continue  # the next worker gets the same batch

    def _batches(self, facts: Sequence[Any]) -> Iterator[Sequence[Any]]:
        at = 0
        while at < len(facts):
            size = self.chance.choice([1, 2, 5, 40])
            yield facts[at : at + size]
            at += size


def read_through_the_cache(user: int) -> list[int]:
    """Read a short first page as the view does; return its posts."""
    return list(edits_through_the_cache(user))


def edits_through_the_cache(user: int) -> dict[int, str | None]:
    """Read a short first page as the view does; return when each post on it was edited."""
    lookup = here.pages.look_up(user)
    if lookup.page:
        return {int(post): edited_at for post, edited_at in orjson.loads(lookup.page.body)}
    reader = Reader(user)
    lookup = here.pages.watch(lookup, reader.pulled_authors())
    page = [(row.id, row.edited_at) for row in reader.read(START, 3)]
    reader.note()
    if reader.cacheable:
        here.pages.store(lookup, CachedPage(b"", orjson.dumps(page)))
    return dict(page)


@transaction.atomic
def step_over(users: Sequence[int]) -> None:
    """Put those of the feeds to rest that nobody reads."""
    housekeeping.put_to_rest(users)


def put_to_rest(user: int) -> None:
    """Let so much time pass without a read of the feed that it is put to rest."""
    here.pages.invalidate([user])  # its page is long gone by then
    Feed.objects.filter(user_id=user).update(last_read_at="2025-01-01T00:00:00Z")
    step_over([user])


# Small enough that a handful of events raises floors and that a post to two followers is one in
# parts.
limits = st.fixed_dictionaries(
    {
        "FEED_STRATEGY": st.sampled_from(["push", "pull", "hybrid"]),
        "FEED_PUSH_MAX_FOLLOWERS": st.sampled_from([1, 2, 3]),
        "FEED_MAX_ENTRIES": st.sampled_from([1, 3, 800]),
        "FEED_BATCH_MAX_ROWS": st.sampled_from([1, 2, 50_000]),
    }
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(steps, max_size=40), st.integers(0, 2**32), st.booleans(), limits)
def test_any_order_batching_repetition_and_interruption_converges_to_the_join(
    history_steps: list[Step], seed: int, shuffled: bool, limits: dict[str, int]
) -> None:
    chance, first_user = random.Random(seed), next(_first_users)
    users = [first_user + number for number in NUMBERS]
    facts = history(history_steps, first_user)
    delivered = with_repetitions(facts, chance)
    if shuffled:
        chance.shuffle(delivered)

    worker = ForgetfulWorker(users, chance)
    with override_settings(**limits):
        worker.deliver(delivered)

    assert worker.dead_letters == []
    assert {user: feed(user) for user in users} == {
        user: expected_feed(facts, user) for user in users
    }
    assert verification.verify(users).equal
    events = {fact.event_id for fact in facts}
    assert ProcessedEvent.objects.filter(event_id__in=events).count() == len(events)


def test_a_batch_costs_the_same_queries_whatever_its_size() -> None:
    follow_all(range(10, 20), followee=1)
    worker = Worker()

    def queries(posts: int) -> int:
        batch = [PostCreatedFactory(author_id=author) for author in (1, 2, 3) for _ in range(posts)]
        with CaptureQueriesContext(connection) as captured:
            worker.process(*batch)
        return len(captured)

    queries(1)  # the feeds of new authors
    assert queries(2) == queries(100)
    assert feed(10) == feed(1)
    assert len(feed(1)) == 103


def test_each_row_is_counted_once_and_a_redelivery_writes_none() -> None:
    follow_all(range(10, 20), followee=1)
    batch = [PostCreatedFactory(author_id=1) for _ in range(5)]
    before = counted("fanout_rows_total")
    Worker().process(*batch)
    assert counted("fanout_rows_total") == before + 5 * 11
    Worker().process(*batch)
    assert counted("fanout_rows_total") == before + 5 * 11


def test_a_post_under_an_id_of_another_author_is_a_dead_letter_and_its_neighbours_arrive() -> None:
    taken = PostCreatedFactory(author_id=1)
    worker = Worker()
    worker.process(taken)
    before, after = PostCreatedFactory(author_id=2), PostCreatedFactory(author_id=2)
    foreign = PostCreatedFactory(author_id=2, post_id=taken.post_id)
    worker.process(before, foreign, after, other := PostCreatedFactory(author_id=3))
    assert [type(error) for error in worker.dead_letters] == [InvalidEvent]
    assert (feed(1), feed(2), feed(3)) == (
        [taken.post_id],
        [after.post_id, before.post_id],
        [other.post_id],
    )


def test_a_follow_may_fill_in_more_posts_than_fit_one_transaction(settings: Settings) -> None:
    settings.FEED_BATCH_MAX_ROWS, settings.FEED_MAX_ENTRIES = 10, 20
    worker = Worker()
    worker.process(*[PostCreatedFactory(author_id=1) for _ in range(30)])
    worker.process(UserFollowedFactory(follower_id=2, followee_id=1))
    assert worker.dead_letters == []
    assert len(feed(2)) == 30
    worker.process(UserUnfollowedFactory(follower_id=2, followee_id=1))
    assert (worker.dead_letters, feed(2)) == ([], [])


# Authors with more followers than fit one transaction ---------------------------------------------

FOLLOWERS = range(10, 3_510)
PART = 1_000


@pytest.fixture
def celebrity(settings: Settings) -> PostCreated:
    """A post of user 1, who has 3,500 followers, where a transaction may write 1,000 rows."""
    follow_all(FOLLOWERS, followee=1)
    settings.FEED_BATCH_MAX_ROWS = PART
    post: PostCreated = PostCreatedFactory(author_id=1)
    return post


def rows_of(post: PostCreated) -> int:
    return FeedEntry.objects.filter(post_id=post.post_id).count()


def stop_after(worker: Worker, transactions: int) -> None:
    """Have the worker told to stop when it has made so many transactions."""
    worker.asked = 0
    worker.stops = lambda: worker.asked > transactions


def test_before_each_part_of_a_post_the_worker_asks_whether_to_stop(celebrity: PostCreated) -> None:
    worker = Worker()
    worker.process(celebrity)
    assert worker.asked == 5
    assert rows_of(celebrity) == len(FOLLOWERS) + 1


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_a_post_that_a_stopped_worker_left_half_delivered_is_delivered_by_the_next(
    celebrity: PostCreated, parts: int
) -> None:
    leaving, next_one = Worker(), Worker()
    stop_after(leaving, parts)
    neighbour = PostCreatedFactory(author_id=2)
    with pytest.raises(WorkerStopping):
        leaving.process(celebrity, neighbour)
    assert rows_of(celebrity) == min(parts * PART, len(FOLLOWERS)) + 1
    assert not ProcessedEvent.objects.filter(event_id=celebrity.event_id).exists()

    next_one.process(celebrity, neighbour)
    assert rows_of(celebrity) == len(FOLLOWERS) + 1
    assert ProcessedEvent.objects.filter(event_id=celebrity.event_id).exists()
    assert verification.verify().equal


def test_a_deletion_is_seen_at_once_and_its_rows_go_bit_by_bit_while_others_go_on(
    celebrity: PostCreated,
) -> None:
    worker = Worker()
    worker.process(celebrity)
    deletion = PostDeletedFactory(author_id=1, post_id=celebrity.post_id)
    worker.waits = 0
    worker.process(deletion, other := PostCreatedFactory(author_id=2))
    assert worker.waits == 0
    assert ProcessedEvent.objects.filter(event_id=deletion.event_id).exists()
    assert (feed(1), feed(FOLLOWERS[-1]), feed(2)) == ([], [], [other.post_id])
    left = [rows_of(celebrity)]
    while fanout.withdraw_part():
        left.append(rows_of(celebrity))
        report = verification.verify()
        assert (report.equal, report.leaving) == (True, left[-1])
    assert left == [3_501, 2_500, 1_500, 500, 0]
    assert not Withdrawal.objects.exists()


def test_whoever_dies_between_two_parts_of_a_withdrawal_leaves_it_to_the_next(
    celebrity: PostCreated,
) -> None:
    Worker().process(celebrity, PostDeletedFactory(author_id=1, post_id=celebrity.post_id))
    assert fanout.withdraw_part()
    with transaction.atomic():
        fanout.withdraw_part()
        transaction.set_rollback(True)  # as a kill does
    assert rows_of(celebrity) == 2_500
    with elsewhere() as do, transaction.atomic():
        Withdrawal.objects.select_for_update().get()
        assert not do(fanout.withdraw_part).result(10)  # somebody is at it
    with housekeeping.housekeeper():
        eventually(lambda: not Withdrawal.objects.exists())
    assert rows_of(celebrity) == 0


def test_who_leaves_while_a_post_is_withdrawn_keeps_no_row_of_it(celebrity: PostCreated) -> None:
    worker = Worker()
    worker.process(celebrity, PostDeletedFactory(author_id=1, post_id=celebrity.post_id))
    worker.process(UserUnfollowedFactory(follower_id=FOLLOWERS[-1], followee_id=1))
    while fanout.withdraw_part():
        pass
    assert rows_of(celebrity) == 0


class OutageAtTheThirdPart(FeedHandlers):
    """What is told about where to go on, and PostgreSQL away at the third time."""

    def __init__(self) -> None:
        self.resumed: list[int | None] = []

    def apply(
        self, facts: Sequence[FeedFact], *, careful: bool, resume_after: int | None
    ) -> int | None:
        self.resumed.append(resume_after)
        if len(self.resumed) == 3:
            raise OperationalError("PostgreSQL is away")
        return super().apply(facts, careful=careful, resume_after=resume_after)


def test_a_large_post_goes_on_after_an_outage_where_it_was(celebrity: PostCreated) -> None:
    outage = OutageAtTheThirdPart()
    Worker(outage).process(celebrity)
    ends = [FOLLOWERS[PART - 1], FOLLOWERS[2 * PART - 1], FOLLOWERS[3 * PART - 1], FOLLOWERS[-1]]
    assert outage.resumed == [None, ends[0], ends[1], ends[1], ends[2], ends[3]]
    assert rows_of(celebrity) == len(FOLLOWERS) + 1


def test_who_follows_or_leaves_between_two_parts_of_a_post_gets_it_or_not(
    celebrity: PostCreated,
) -> None:
    early, late, newcomer = FOLLOWERS[5], FOLLOWERS[-5], 5
    worker = Worker()

    def change_the_audience() -> bool:
        if worker.asked == 3:
            Worker().process(
                UserFollowedFactory(follower_id=newcomer, followee_id=1),
                UserUnfollowedFactory(follower_id=early, followee_id=1),
                UserUnfollowedFactory(follower_id=late, followee_id=1),
            )
        return False

    worker.stops = change_the_audience
    worker.process(celebrity)
    assert (feed(newcomer), feed(early), feed(late)) == ([celebrity.post_id], [], [])
    assert rows_of(celebrity) == len(FOLLOWERS)
    assert verification.verify().equal


def test_a_post_deleted_between_two_of_its_parts_is_in_nobodys_feed(celebrity: PostCreated) -> None:
    worker = Worker()

    def delete() -> bool:
        if worker.asked == 3:
            Worker().process(PostDeletedFactory(author_id=1, post_id=celebrity.post_id))
        return False

    worker.stops = delete
    worker.process(celebrity)
    while fanout.withdraw_part():
        pass
    assert (rows_of(celebrity), feed(1)) == (0, [])
    assert verification.verify().equal


def test_an_author_who_shrank_between_two_parts_is_finished_all_the_same(
    celebrity: PostCreated, settings: Settings
) -> None:
    settings.FEED_MAX_ENTRIES = 1  # lets many unfollows share a transaction
    worker = Worker()

    def shrink() -> bool:
        if worker.asked == 2:
            Worker().process(
                *[
                    UserUnfollowedFactory(follower_id=user, followee_id=1)
                    for user in FOLLOWERS[100:]
                ]
            )
        return False

    worker.stops = shrink
    worker.process(celebrity)
    assert Feed.objects.get(user_id=1).follower_count == 100
    assert rows_of(celebrity) == 101
    assert verification.verify().equal


def test_the_pages_of_all_followers_are_dropped_however_many_they_are(
    celebrity: PostCreated,
) -> None:
    readers = [1, FOLLOWERS[0], FOLLOWERS[PART], FOLLOWERS[-1]]
    here.pages.invalidate(readers)
    assert [read_through_the_cache(user) for user in readers] == [[]] * 4
    assert {here.pages.look_up(user).result for user in readers} == {"hit"}
    Worker().process(celebrity)
    assert [read_through_the_cache(user) for user in readers] == [[celebrity.post_id]] * 4


def test_a_post_among_many_of_large_authors_is_never_part_of_an_oversized_transaction(
    celebrity: PostCreated,
) -> None:
    small = [PostCreatedFactory(author_id=author) for author in range(4, 9)]
    worker = Worker()
    worker.process(*small[:2], celebrity, *small[2:])
    assert worker.asked == 7  # it was worked off in parts, the others were not
    assert Post.objects.count() == 6
    assert verification.verify().equal
