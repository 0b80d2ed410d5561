"""How far a feed was seen: a marker that only rises, and what is unread above it."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from feeds import rebuild
from feeds.models import RESTING, Feed
from feeds.read import first_page, here
from feeds.read.page import with_links
from feedsite.authentication import issue_token
from posts.events import PostCreated
from posts.pagination import DEFAULT_LIMIT, START
from tests.factories import (
    FeedSeenFactory,
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    apply,
)
from tests.feeds.hybrid import AUTHOR, READER, STAR, post, worker_of_both_kinds
from tests.feeds.model import Step, expected_feed, feed, history, with_repetitions
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

NEWCOMER = 4
STRATEGIES = ["push", "pull", "hybrid"]


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """The reader follows an author whose posts are pushed and a star, whose posts are pulled."""
    return worker_of_both_kinds(settings)


def see(worker: Worker, post_id: int) -> None:
    worker.process(FeedSeenFactory(user_id=READER, post_id=post_id))


def marker() -> int | None:
    return Feed.objects.get(user_id=READER).seen_post_id


def ask(path: str) -> Any:
    headers = {"Authorization": f"Bearer {issue_token(READER, '', 60)}"}
    return Client(headers=headers).get(f"/feeds/{READER}{path}")


def told(query: str = "") -> tuple[int | None, int | None]:
    """Return what a first page says of the marker and of what is unread."""
    body = ask(query).json()
    assert set(body) == {
        "results",
        "next",
        "previous",
        "next_cursor",
        "previous_cursor",
        "seen",
        "unread",
    }
    assert body["seen"] is None or body["seen"] == str(int(body["seen"]))
    return body["seen"] and int(body["seen"]), body["unread"]


def queries(path: str = "") -> int:
    """Return how many queries a read costs, but for the one a second that asks whether the cache
    counts.
    """
    with CaptureQueriesContext(connection) as captured:
        assert ask(path).status_code == 200
    return sum("cache_state" not in query["sql"] for query in captured)


# The marker ---------------------------------------------------------------------------------------


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50)), max_size=20), st.integers())
def test_in_any_order_with_repetitions_the_highest_post_stays(
    steps: Sequence[tuple[int, int]], seed: int
) -> None:
    chance = random.Random(seed)
    facts = [FeedSeenFactory(user_id=user, post_id=post_id) for user, post_id in steps]
    delivered = with_repetitions(facts, chance, every=2)
    chance.shuffle(delivered)
    expected: dict[int, int] = {}
    for user, post_id in steps:
        expected[user] = max(post_id, expected.get(user, 0))
    with transaction.atomic():
        while delivered:
            size = chance.randint(1, 5)
            apply(*delivered[:size])
            delivered = delivered[size:]
        assert dict(Feed.objects.values_list("user_id", "seen_post_id")) == expected
        transaction.set_rollback(True)


def test_a_batch_of_markers_costs_the_same_queries_whatever_its_size(
    django_assert_num_queries: Any,
) -> None:
    facts = [FeedSeenFactory(user_id=user) for user in range(1, 201)]
    with django_assert_num_queries(5):  # BEGIN, feeds rows, their locks, the markers, COMMIT
        apply(*facts)
    assert Feed.objects.exclude(seen_post_id=None).count() == 200


def test_workers_that_follow_and_mark_at_the_same_time_do_not_deadlock(
    worker: Worker, settings: Settings
) -> None:
    """Each holds the rows of the pairs it follows when it comes to the markers of the others."""

    def work(users: tuple[int, int, int]) -> int:
        followee, follower, seeing = users
        own = Worker()
        try:
            for _ in range(30):
                fact = UserFollowedFactory(follower_id=follower, followee_id=followee)
                own.process(fact, FeedSeenFactory(user_id=seeing))
        finally:
            connection.close()
        return own.waits

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(work, [(21, 22, 23), (24, 23, 22)])) == [0, 0]


def test_a_marker_keeps_the_feed_as_it_is(worker: Worker) -> None:
    written = post(worker, 3)
    see(worker, written[0])
    assert feed(READER) == written


# What is unread -----------------------------------------------------------------------------------


def test_without_a_marker_nothing_is_said_to_be_unread(worker: Worker) -> None:
    post(worker, 3)
    assert [told(), told(), told("?limit=2")] == [(None, None)] * 3


def test_posts_above_the_marker_are_unread_until_they_are_seen(worker: Worker) -> None:
    written = post(worker, 5)
    for unread, seen in reversed(list(enumerate(written))):
        see(worker, seen)
        for query in ("", "", "?limit=2", "?limit=100"):
            assert told(query) == (seen, unread)
    see(worker, written[4])
    assert told() == (written[0], 0)


def test_a_marker_need_not_be_a_post_of_the_feed(worker: Worker) -> None:
    written = post(worker, 2)
    see(worker, written[1] + 1)
    assert told() == (written[1] + 1, 1)
    see(worker, written[0] + 1)
    assert told() == (written[0] + 1, 0)


def test_other_pages_than_the_first_say_nothing_of_it(worker: Worker) -> None:
    see(worker, post(worker, 5)[3])
    second = ask("?limit=2").json()["next"].partition(f"/feeds/{READER}")[2]
    assert set(ask(second).json()) == {
        "results",
        "next",
        "previous",
        "next_cursor",
        "previous_cursor",
    }


@pytest.mark.parametrize("author", [AUTHOR, STAR])
@pytest.mark.parametrize("older", [3, DEFAULT_LIMIT + 5])
def test_a_cached_page_is_void_when_the_marker_moves_and_when_a_post_comes(
    worker: Worker, author: int, older: int
) -> None:
    written = post(worker, older)
    assert [told(), told()] == [(None, None)] * 2
    for seen in (written[-1], written[0]):
        see(worker, seen)
        for _ in range(2):  # the second comes from the cache
            assert told() == (seen, written.index(seen))
    post(worker, 2, author)
    assert [told(), told()] == [(written[0], 2)] * 2
    assert ask("").headers["X-Cache"] == "hit"


def test_who_loaded_before_the_marker_moved_can_store_nothing_after_it(worker: Worker) -> None:
    written = post(worker, 2)
    slow = here.pages.look_up(READER)
    see(worker, written[0])
    told()
    page = here.pages.look_up(READER).page
    assert page is not None
    assert here.pages.store(slow, page._replace(seen=b"")) is False
    assert told() == (written[0], 0)


@pytest.mark.parametrize("posts", [DEFAULT_LIMIT + 1, 99, 100, 101, 150])
def test_beyond_the_page_they_are_counted_up_to_a_hundred(worker: Worker, posts: int) -> None:
    written = post(worker, posts // 2) + post(worker, posts - posts // 2, STAR)
    see(worker, 1)
    for query in ("", "", "?limit=5", "?limit=100"):
        assert told(query) == (1, min(posts, 100))
    assert ask("/new").json() == {"count": min(posts, 100), "newest_id": str(max(written))}


def test_what_leaves_the_feed_is_unread_no_more(worker: Worker) -> None:
    first, last = post(worker) + post(worker)
    see(worker, 1)
    assert told()[1] == 2
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=last))
    assert told()[1] == 1
    worker.process(UserUnfollowedFactory(follower_id=READER, followee_id=AUTHOR))
    assert told()[1] == 0
    assert first < last


def test_a_late_post_below_the_marker_is_in_the_feed_and_not_unread(worker: Worker) -> None:
    late = PostCreatedFactory(author_id=AUTHOR)
    written = post(worker, 2)
    see(worker, written[1])
    worker.process(late)
    assert feed(READER) == [*written, late.post_id]
    assert told() == (written[1], 1)


def test_what_a_new_follow_brings_from_before_the_marker_is_not_unread(worker: Worker) -> None:
    old = post(worker, 3, NEWCOMER)
    see(worker, post(worker)[0])
    new = post(worker, 2, NEWCOMER)
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=NEWCOMER))
    assert set(feed(READER)) > {*old, *new}
    assert told()[1] == 2


def test_own_posts_are_posts_of_the_feed(worker: Worker) -> None:
    see(worker, post(worker)[0])
    post(worker, 1, READER)
    assert told()[1] == 1


def test_a_feed_that_rests_tells_it_too(worker: Worker) -> None:
    written = post(worker, DEFAULT_LIMIT + 4)
    see(worker, written[-1])
    Feed.objects.filter(user_id=READER).update(idle=True, floor=RESTING)
    here.pages.invalidate([READER])
    for query in ("", "", "?limit=5"):
        assert told(query) == (written[-1], DEFAULT_LIMIT + 3)
    rebuild.rebuild([READER])
    here.pages.invalidate([READER])
    assert [told(), told()] == [(written[-1], DEFAULT_LIMIT + 3)] * 2


happenings = st.tuples(
    st.sampled_from(["post", "post", "delete", "follow", "unfollow", "see"]),
    st.integers(1, 4),
    st.integers(1, 4),
)


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(happenings, max_size=40), st.integers(0, 2**32), st.sampled_from(STRATEGIES))
def test_what_is_unread_is_the_feed_above_the_marker_whatever_happens(
    settings: Settings, steps: list[Step], seed: int, strategy: str
) -> None:
    chance = random.Random(seed)
    settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = strategy, 2
    facts = history(step for step in steps if step[0] != "see")
    posts = [fact.post_id for fact in facts if isinstance(fact, PostCreated)] or [1]
    markers: dict[int, int] = {}
    for kind, user, _other in steps:
        if kind == "see":
            post_id = chance.choice(posts)
            markers[user] = max(post_id, markers.get(user, 0))
            facts.append(FeedSeenFactory(user_id=user, post_id=post_id))
    delivered = with_repetitions(facts, chance)
    chance.shuffle(delivered)
    with transaction.atomic():
        for fact in delivered:
            apply(fact, careful=True)
        for user in range(1, 5):
            marker = markers.get(user)
            unread = [post for post in expected_feed(facts, user) if post > (marker or 0)]
            for limit in (1, 3, 100):
                body = first_page.read_body(user, START, limit)
                told = orjson.loads(with_links(body, "", None))
                assert told["seen"] == (None if marker is None else str(marker))
                assert told["unread"] == (None if marker is None else len(unread))
        transaction.set_rollback(True)


# Its cost -----------------------------------------------------------------------------------------


def test_it_costs_no_query_unless_the_page_does_not_reach_the_marker(worker: Worker) -> None:
    written = post(worker, DEFAULT_LIMIT + 5)

    def uncached() -> int:
        here.pages.invalidate([READER])
        return queries()

    without = uncached()
    for seen in (written[DEFAULT_LIMIT - 1], written[1], written[0]):
        Feed.objects.filter(user_id=READER).update(seen_post_id=seen)
        assert uncached() == without
        assert (queries(), queries("/new")) == (0, 0)
    Feed.objects.filter(user_id=READER).update(seen_post_id=written[-1])
    assert uncached() == without + 2  # what was pushed, and what is pulled
    assert (queries(), queries("/new")) == (0, 0)


# Asking for what is new ---------------------------------------------------------------------------


def test_new_without_since_counts_from_the_marker(worker: Worker) -> None:
    written = post(worker, DEFAULT_LIMIT + 5)
    refused = ask("/new")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_seen")
    for seen in (written[-1], written[3], written[0]):
        see(worker, seen)
        count = written.index(seen)
        for _ in range(2):
            assert ask("/new").json() == {"count": count, "newest_id": str(written[0])}
            assert ask("/new?since=0").json()["count"] == DEFAULT_LIMIT + 5
    post(worker)
    assert ask("/new").json()["count"] == 1
