"""Push, pull and hybrid: however a post travels, it is in the feed of everyone who follows its
author, once.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection
from pytest_django import Settings

from eventbus.models import Erasure
from feeds import erasure, handlers, housekeeping, verification
from feeds.models import CacheState, Feed, FeedEntry, new_generation
from feeds.read import era, first_page, here
from feeds.read.pages import MAX_WATCHED
from feeds.rebuild import rebuild
from feeds.timeline import Reader
from posts import pagination
from posts.events import PostCreated
from posts.models import Fanout, Post
from posts.pagination import START, Page
from tests.eventbus.events import counted
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserErasedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    apply,
    follow_all,
)
from tests.feeds.model import expected_feed, feed, open_feed
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

AUTHOR, READER = 1, 2
FOLLOWERS = range(2, 12)
THRESHOLD = 10


@pytest.fixture(autouse=True)
def hybrid(settings: Settings) -> None:
    settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = "hybrid", THRESHOLD


@pytest.fixture
def star() -> Worker:
    """An author with just so many followers that posts are pulled."""
    follow_all(FOLLOWERS, followee=AUTHOR)
    return Worker()


def post(worker: Worker, author: int = AUTHOR) -> int:
    fact: PostCreated = PostCreatedFactory(author_id=author)
    worker.process(fact)
    return fact.post_id


def reopen_cache() -> None:
    """Open it as a process does when the time has passed for which a closed cache stays closed."""
    CacheState.objects.update(closed_at=None, generation=new_generation())
    time.sleep(era.TRUST_SECONDS)


def kinds(author: int = AUTHOR) -> list[str]:
    """Return how each post of the author travels, oldest first."""
    return [
        Fanout(kind).label
        for kind in Post.objects.filter(author_id=author)
        .order_by("id")
        .values_list("fanout", flat=True)
    ]


# A pulled post ------------------------------------------------------------------------------------


def test_a_pulled_post_costs_one_row_and_is_in_every_feed_at_the_next_read(star: Worker) -> None:
    before = counted("fanout_rows_total")
    pulled = post(star)
    assert kinds() == ["pull"]
    assert (counted("fanout_rows_total"), FeedEntry.objects.count()) == (before, 0)
    assert [feed(user) for user in (AUTHOR, *FOLLOWERS)] == [[pulled]] * 11
    assert verification.verify().equal


def tables_read(act: Callable[[], None]) -> Counter[str]:
    """Return how often queries of `act` name each table."""
    with CaptureQueriesContext(connection) as captured:
        act()
    return Counter(
        re.findall(
            r'"?\b(follows|feeds|feed_entries|posts)\b"?', " ".join(q["sql"] for q in captured)
        )
    )


def test_to_store_a_pulled_post_nobody_looks_for_its_followers(star: Worker) -> None:
    seen = tables_read(
        lambda: apply(PostCreatedFactory(author_id=AUTHOR), PostCreatedFactory(author_id=AUTHOR))
    )
    assert kinds() == ["pull", "pull"]
    assert "posts" in seen
    assert not seen.keys() & {"follows", "feed_entries"}


def test_pages_cached_before_a_pulled_post_show_it_at_the_next_read(star: Worker) -> None:
    first = post(star)
    users = (AUTHOR, *FOLLOWERS)
    assert [open_feed(user) for user in users] == [([first], "miss")] * 11
    assert [open_feed(user) for user in users] == [([first], "hit")] * 11
    second = post(star)
    assert [open_feed(user) for user in users] == [([second, first], "miss")] * 11
    assert [open_feed(user) for user in users] == [([second, first], "hit")] * 11
    star.process(PostDeletedFactory(author_id=AUTHOR, post_id=first))
    assert [open_feed(user) for user in users] == [([second], "miss")] * 11


def test_pages_cached_before_the_author_was_ever_pulled_show_the_first_pulled_post(
    settings: Settings,
) -> None:
    settings.FEED_STRATEGY, worker = "push", Worker()
    follow_all(FOLLOWERS, followee=AUTHOR)
    pushed = post(worker)
    assert [open_feed(READER)[1] for _ in range(2)] == ["miss", "hit"]
    settings.FEED_STRATEGY = "hybrid"
    pulled = post(worker)
    assert kinds() == ["push", "pull"]
    assert open_feed(READER) == ([pulled, pushed], "miss")
    assert open_feed(READER)[1] == "hit"


def test_after_a_batch_of_posts_one_question_tells_who_is_watched_and_what_is_deleted(
    star: Worker,
) -> None:
    posts = [PostCreatedFactory(author_id=author) for author in (AUTHOR, *FOLLOWERS)]
    apply(*posts)
    asked = tables_read(lambda: handlers.FeedHandlers().after_commit(posts))
    assert asked == {"feeds": 1, "posts": 1, "follows": 1}
    with CaptureQueriesContext(connection) as captured:
        handlers.FeedHandlers().after_commit(posts)
    # That, the followers, and whether the cache is open.
    assert len(captured) == 3


def test_no_page_with_a_post_of_an_erased_author_stays_in_redis(star: Worker) -> None:
    Feed.objects.filter(user_id=AUTHOR).update(pulled_since="2026-01-01T00:00:00Z")
    star.process(PostCreatedFactory(author_id=AUTHOR, content="a secret"))
    left_before = UserUnfollowedFactory(follower_id=FOLLOWERS[0], followee_id=AUTHOR)
    for user in (AUTHOR, *FOLLOWERS):
        first_page.read(user)
    star.process(left_before)
    # All readers' pages watch the author: that they are void is told by the author's token alone.
    assert len(kept_with(b"a secret")) == len(FOLLOWERS)
    star.process(UserErasedFactory(user_id=AUTHOR))
    while Erasure.objects.filter(finished_at=None).exists():
        erasure.erase_part()
    assert kept_with(b"a secret") == []


def kept_with(text: bytes) -> list[bytes]:
    """Return the keys of Redis under which `text` is kept."""
    redis = get_redis_connection("default")
    return [key for key in redis.scan_iter("feed:*") if text in (redis.get(key) or b"")]


def test_once_every_page_watches_an_author_nobody_looks_for_the_followers_to_void_theirs(
    star: Worker, settings: Settings
) -> None:
    fact = PostCreatedFactory(author_id=AUTHOR)
    apply(fact)
    assert tables_read(lambda: handlers.FeedHandlers().after_commit([fact]))["follows"] == 1
    settings.FEED_CACHE_TTL = 60
    Feed.objects.filter(user_id=AUTHOR).update(pulled_since=Now() - timedelta(hours=1))
    # Pages that were cached before the setting was lowered may live for hours.
    assert tables_read(lambda: handlers.FeedHandlers().after_commit([fact]))["follows"] == 1
    Feed.objects.filter(user_id=AUTHOR).update(pulled_since=Now() - timedelta(hours=13))
    assert tables_read(lambda: handlers.FeedHandlers().after_commit([fact]))["follows"] == 0


def test_a_worker_with_another_strategy_has_readers_watch_its_authors_before_they_post(
    settings: Settings,
) -> None:
    settings.FEED_STRATEGY, worker = "push", Worker()
    follow_all(FOLLOWERS, followee=AUTHOR)
    pushed = post(worker)
    assert [open_feed(READER)[1] for _ in range(2)] == ["miss", "hit"]
    settings.FEED_STRATEGY = "hybrid"
    assert housekeeping.watch_pulled_authors() == 1
    assert housekeeping.watch_pulled_authors() == 0
    assert open_feed(READER) == (
        [pushed],
        "bypass",
    )  # pages from before do not watch the author: all are void
    reopen_cache()
    assert [open_feed(READER)[1] for _ in range(2)] == ["miss", "hit"]
    fact = PostCreatedFactory(author_id=AUTHOR)
    apply(fact)
    assert tables_read(lambda: handlers.FeedHandlers().after_commit([fact]))["follows"] == 0
    assert open_feed(READER) == ([fact.post_id, pushed], "miss")


@pytest.mark.parametrize("cause", ["post", "follow"])
def test_an_author_counts_as_watched_from_when_it_is_written_not_from_when_the_transaction_began(
    settings: Settings, cause: str
) -> None:
    settings.FEED_STRATEGY = "pull"
    with transaction.atomic():
        fact = PostCreatedFactory() if cause == "post" else UserFollowedFactory()
        handlers.FeedHandlers().apply([fact], careful=False, resume_after=None)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pulled_since > now() FROM feeds WHERE user_id = 1")
            assert cursor.fetchone() == (True,)


def test_a_deleted_pulled_post_is_in_no_feed(star: Worker) -> None:
    kept, gone = post(star), post(star)
    star.process(PostDeletedFactory(author_id=AUTHOR, post_id=gone))
    assert [feed(user) for user in (AUTHOR, *FOLLOWERS)] == [[kept]] * 11
    assert verification.verify().equal


def test_following_and_unfollowing_a_pulled_author(star: Worker) -> None:
    pulled, newcomer = post(star), 50
    assert open_feed(newcomer) == ([], "miss")
    star.process(UserFollowedFactory(follower_id=newcomer, followee_id=AUTHOR))
    assert open_feed(newcomer) == ([pulled], "miss")
    second = post(star)
    assert open_feed(newcomer) == ([second, pulled], "miss")
    star.process(UserUnfollowedFactory(follower_id=newcomer, followee_id=AUTHOR))
    assert open_feed(newcomer) == ([], "miss")
    assert FeedEntry.objects.count() == 0
    assert verification.verify().equal


def test_a_reader_of_very_many_pulled_authors_is_not_cached_but_right(settings: Settings) -> None:
    settings.FEED_STRATEGY, worker = "pull", Worker()
    authors = range(10, 10 + MAX_WATCHED)
    follows = [UserFollowedFactory(follower_id=READER, followee_id=author) for author in authors]
    apply(*follows)
    first = post(worker, author=authors[0])
    assert [open_feed(READER)[1] for _ in range(2)] == [
        "miss",
        "hit",
    ]  # as many as a page can watch

    apply(UserFollowedFactory(follower_id=READER, followee_id=authors[-1] + 1))
    here.pages.invalidate([READER])
    read = [open_feed(READER) for _ in range(3)]
    assert [page for page, _ in read] == [[first]] * 3
    assert "hit" not in {how for _, how in read}
    last = post(worker, author=authors[-1] + 1)
    assert open_feed(READER)[0] == [last, first]
    assert verification.verify().equal


# From one strategy to another ---------------------------------------------------------------------


def test_an_author_who_crosses_the_threshold_both_ways_loses_and_doubles_nothing(
    settings: Settings,
) -> None:
    worker, users = Worker(), (AUTHOR, *FOLLOWERS)
    posts: list[int] = []

    def post_and_read() -> None:
        posts.insert(0, post(worker))
        assert [open_feed(user)[0] for user in readers] == [posts] * len(readers)
        assert [feed(user) for user in readers] == [posts] * len(readers)
        assert verification.verify().equal

    readers = users[:10]
    follow_all(readers[1:], followee=AUTHOR)
    post_and_read()  # by nine followers
    worker.process(UserFollowedFactory(follower_id=users[10], followee_id=AUTHOR))
    readers = users
    post_and_read()  # by ten
    post_and_read()
    worker.process(UserUnfollowedFactory(follower_id=users[1], followee_id=AUTHOR))
    readers = (AUTHOR, *users[2:])
    post_and_read()  # by nine again
    assert kinds() == ["push", "pull", "pull", "push"]
    assert feed(users[1]) == []
    worker.process(UserFollowedFactory(follower_id=users[1], followee_id=AUTHOR))
    readers = users
    post_and_read()
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=posts.pop(1)))
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=posts.pop(1)))
    post_and_read()


def test_follow_that_makes_an_author_pulled_and_the_post_may_come_in_one_batch(
    settings: Settings,
) -> None:
    worker, last = Worker(), FOLLOWERS[-1]
    follow_all(FOLLOWERS[:-1], followee=AUTHOR)
    pushed, pulled = PostCreatedFactory(author_id=AUTHOR), PostCreatedFactory(author_id=AUTHOR)
    worker.process(pushed, UserFollowedFactory(follower_id=last, followee_id=AUTHOR), pulled)
    assert kinds() == ["push", "pull"]
    assert [feed(user) for user in FOLLOWERS] == [[pulled.post_id, pushed.post_id]] * 10
    assert verification.verify().equal


@pytest.mark.parametrize("seed", range(3))
def test_switching_the_strategy_with_data_in_place_changes_no_feed(
    settings: Settings, seed: int
) -> None:
    chance, worker, users = random.Random(seed), Worker(), range(1, 16)
    facts: list[Any] = [
        UserFollowedFactory(follower_id=follower, followee_id=followee)
        for follower in users
        for followee in users
        if follower != followee and chance.random() < 0.6
    ]
    worker.process(*facts)
    for strategy in ["push", "hybrid", "pull", "hybrid", "push", "pull"]:
        before = [feed(user) for user in users]
        settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = (
            strategy,
            chance.choice([5, 8, 11]),
        )
        assert [feed(user) for user in users] == before
        batch: list[Any] = [PostCreatedFactory(author_id=chance.choice(users)) for _ in range(12)]
        batch += [
            PostDeletedFactory(author_id=gone.author_id, post_id=gone.post_id)
            for gone in chance.sample(
                [fact for fact in facts if isinstance(fact, PostCreated)] or batch, 3
            )
        ]
        worker.process(*batch)
        facts += batch
        assert [feed(user) for user in users] == [expected_feed(facts, user) for user in users]
        assert verification.verify().equal
    assert set(Post.objects.values_list("fanout", flat=True)) == {Fanout.PUSH, Fanout.PULL}


def test_an_event_that_comes_again_under_another_strategy_has_no_second_effect(
    star: Worker, settings: Settings
) -> None:
    settings.FEED_STRATEGY = "push"
    fact = PostCreatedFactory(author_id=AUTHOR)
    apply(fact)
    settings.FEED_STRATEGY = "pull"
    apply(fact, careful=True)  # as after a restore that lost processed_events
    assert kinds() == ["push"]
    assert [feed(user) for user in FOLLOWERS] == [[fact.post_id]] * 10
    assert verification.verify().equal


# Pages across everything --------------------------------------------------------------------------


@pytest.fixture
def mixed(settings: Settings) -> list[int]:
    """The feed of a reader who follows a pulled and two pushed authors, its floor in the middle;
    return it.
    """
    settings.FEED_MAX_ENTRIES = 9
    worker, chance = Worker(), random.Random(7)
    follow_all(range(100, 100 + THRESHOLD), followee=AUTHOR)
    follow_all([READER], followee=AUTHOR)
    facts = [
        UserFollowedFactory(follower_id=READER, followee_id=author) for author in (AUTHOR, 3, 4)
    ]
    posts = [
        PostCreatedFactory(author_id=chance.choice([AUTHOR, AUTHOR, 3, 4, READER]))
        for _ in range(41)
    ]
    deletions = [
        PostDeletedFactory(author_id=gone.author_id, post_id=gone.post_id) for gone in posts[5::8]
    ]
    worker.process(*facts, *posts, *deletions)
    rebuild([READER])
    floor = Feed.objects.get(user_id=READER).floor
    expected = expected_feed([*facts, *posts, *deletions], READER)
    assert expected[-5] > floor > 0 or expected[5] > floor > expected[-5]
    above = Post.objects.filter(id__in=expected, id__gt=floor)
    assert set(above.values_list("fanout", flat=True)) == {Fanout.PUSH, Fanout.PULL}
    assert FeedEntry.objects.filter(user_id=READER).count() == settings.FEED_MAX_ENTRIES
    return expected


def page_at(position: pagination.Position | None, limit: int) -> Page:
    assert position is not None
    reader = Reader(READER)
    return pagination.paginate(reader.read, lambda row: row.id, position, limit, reader.any_beyond)


def pages(limit: int) -> Iterator[Page]:
    """Yield all pages from the first to the last."""
    page = page_at(START, limit)
    yield page
    while page.next:
        page = page_at(page.next, limit)
        yield page


def ids(page: Page) -> list[int]:
    return [row.id for row in page.rows]


@pytest.mark.parametrize("limit", range(1, 8))
def test_pages_across_the_floor_are_whole_in_both_directions(mixed: list[int], limit: int) -> None:
    down = list(pages(limit))
    assert [post for page in down for post in ids(page)] == mixed
    assert {len(page.rows) for page in down[:-1]} <= {limit}
    assert down[-1].rows

    page = down[-1]
    up: list[Page] = []
    while page.previous:
        page = page_at(page.previous, limit)
        up.insert(0, page)
        assert page.rows
        assert page.next
    assert [post for page in up for post in ids(page)] == mixed[: len(mixed) - len(down[-1].rows)]
    assert {len(page.rows) for page in up[1:]} <= {limit}


@pytest.mark.parametrize("limit", range(1, 8))
def test_the_page_before_a_page_is_the_one_it_was_reached_from(
    mixed: list[int], limit: int
) -> None:
    here = None
    for page in pages(limit):
        if here:
            assert ids(page_at(page.previous, limit)) == ids(here)
        here = page


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_posts_that_arrive_while_someone_pages_shift_nothing(mixed: list[int], limit: int) -> None:
    worker, read, arrived = Worker(), [], []
    for page in pages(limit):
        read += ids(page)
        arrived += [post(worker, author) for author in (AUTHOR, 3)]
        rebuild([READER])  # the floor rises under the reader
    assert read == mixed
    assert feed(READER) == [*reversed(arrived), *mixed]


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_whoever_has_read_all_finds_what_came_since_by_going_on_towards_newer_posts(
    mixed: list[int], limit: int
) -> None:
    arrived = [post(Worker(), author) for author in (AUTHOR, 3, 4, AUTHOR, AUTHOR, 3, READER, 4)]
    found: list[int] = []
    page = page_at(pagination.Position(mixed[0], newer=True), limit)
    while page.rows:
        found = ids(page) + found
        if page.previous is None:
            break
        page = page_at(page.previous, limit)
    assert found == arrived[::-1]


def test_any_read_of_any_length_from_any_place_is_that_part_of_the_feed(mixed: list[int]) -> None:
    places = sorted(
        {place + step for place in mixed for step in (-1, 0, 1)}
        | {0, Feed.objects.get(user_id=READER).floor}
    )
    for place in places:
        for limit in (1, 4, 50):
            older = [
                row.id
                for row in Reader(READER).read(pagination.Position(place, newer=False), limit)
            ]
            assert older == [post for post in mixed if post <= place][:limit]
            newer = [
                row.id for row in Reader(READER).read(pagination.Position(place, newer=True), limit)
            ]
            assert newer == [post for post in reversed(mixed) if post > place][:limit]
