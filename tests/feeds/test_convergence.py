"""Events in whatever order, repeated, late or in any batches: the feeds become what the join
says.
"""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from eventbus.exceptions import InvalidEvent
from feeds import fanout, handlers, verification
from feeds.models import Feed, FeedEntry, Follow
from posts.events import PostCreated
from posts.models import Post
from posts.pagination import START
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    apply,
    follow_all,
)
from tests.feeds.model import (
    Step,
    expected_feed,
    expected_posts,
    feed,
    history,
    shown_post,
    some_step,
    with_repetitions,
)

pytestmark = pytest.mark.django_db

USERS = range(1, 6)


def deliver(facts: Sequence[Any], chance: random.Random) -> None:
    """Apply facts in random batches."""
    left = list(facts)
    while left:
        size = chance.randint(1, 6)
        apply(*left[:size], careful=True)
        left = left[size:]


steps = some_step(USERS, "mute")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(steps, max_size=40), st.integers(0, 2**32), st.booleans())
def test_any_order_with_repetitions_converges_to_the_join(
    history_steps: list[Step], seed: int, shuffled: bool
) -> None:
    chance = random.Random(seed)
    facts = history(history_steps)
    delivered = with_repetitions(facts, chance)
    if shuffled:
        chance.shuffle(delivered)
    with transaction.atomic():
        deliver(delivered, chance)
        for user in USERS:
            assert feed(user) == expected_feed(facts, user)
        posts = expected_posts(facts)
        for post in (fact for fact in facts if isinstance(fact, PostCreated)):
            assert shown_post(post.post_id) == posts.get(post.post_id)
        assert verification.verify().equal
        transaction.set_rollback(True)


def test_a_batch_of_new_posts_costs_the_same_queries_whatever_its_size(
    django_assert_num_queries: Any,
) -> None:
    follow_all(range(10, 30), followee=1)
    posts = [PostCreatedFactory(author_id=1) for _ in range(50)]
    with django_assert_num_queries(4):  # feeds rows, follower counts, posts, entries
        handlers.FeedHandlers().apply(posts, careful=False, resume_after=None)
    assert FeedEntry.objects.count() == 50 * 21


def test_what_one_author_does_is_applied_in_order_within_a_batch() -> None:
    post, later = PostCreatedFactory(author_id=1), PostCreatedFactory(author_id=1)
    apply(
        UserFollowedFactory(follower_id=2, followee_id=1),
        post,
        UserUnfollowedFactory(follower_id=2, followee_id=1),
        later,
        UserFollowedFactory(follower_id=3, followee_id=1),
    )
    assert (feed(2), feed(3)) == ([], [later.post_id, post.post_id])


def test_a_tombstone_that_comes_first_keeps_the_post_away() -> None:
    post = PostCreatedFactory()
    apply(PostDeletedFactory(post_id=post.post_id))
    apply(post)
    assert feed(1) == []
    assert Post.objects.get().content == ""


def test_a_post_id_of_another_author_is_refused() -> None:
    post = PostCreatedFactory(author_id=1)
    apply(post)
    with pytest.raises(InvalidEvent, match="another author"), transaction.atomic():
        apply(PostCreatedFactory(author_id=2, post_id=post.post_id))
    follow_all([3], followee=1)
    follow_all([1, 3], followee=2)
    apply(PostDeletedFactory(author_id=2, post_id=post.post_id))
    assert feed(1) == feed(3) == [post.post_id]


def test_a_follow_of_a_long_history_raises_the_floor_and_every_post_can_still_be_read(
    settings: Settings,
) -> None:
    settings.FEED_MAX_ENTRIES = 10
    apply(*[PostCreatedFactory(author_id=1) for _ in range(35)])
    apply(*[PostCreatedFactory(author_id=3) for _ in range(5)])
    follow_all([2], followee=1)
    follow_all([2], followee=3)
    assert Feed.objects.get(user_id=2).floor > 0
    assert FeedEntry.objects.filter(user_id=2).count() == 15
    assert feed(2) == sorted(Post.objects.values_list("id", flat=True), reverse=True)
    assert verification.verify().equal


def test_follower_counts_change_with_their_cause() -> None:
    follow_all([2, 3, 4], followee=1)
    follow_all([2], followee=1)
    apply(
        UserUnfollowedFactory(follower_id=3, followee_id=1),
        UserUnfollowedFactory(follower_id=9, followee_id=1),
    )
    assert Feed.objects.get(user_id=1).follower_count == 2
    assert Follow.objects.followers_page(1, START, 10) == [4, 2]


@pytest.mark.parametrize("interrupted_after", [0, 1, 3])
def test_an_author_with_very_many_followers_is_worked_off_in_parts(
    settings: Settings, interrupted_after: int
) -> None:
    settings.FEED_BATCH_MAX_ROWS = 1_000
    follow_all(range(10, 3_510), followee=1)
    for fact in (
        post := PostCreatedFactory(author_id=1),
        PostDeletedFactory(author_id=1, post_id=post.post_id),
    ):
        assert [[fact]] == handlers.FeedHandlers().plan([fact])
        work_off(fact, parts=interrupted_after)
        parts = work_off(fact)
        while fanout.withdraw_part():
            parts += 1
        assert parts >= 4
        assert verification.verify().equal
        assert FeedEntry.objects.count() == (3_501 if isinstance(fact, PostCreated) else 0)


def work_off(fact: Any, parts: int = 100) -> int:
    """Apply a fact part by part, at most `parts` of them; return how many there were."""
    resume_after, done = None, 0
    while done < parts:
        resume_after = handlers.FeedHandlers().apply(
            [fact], careful=False, resume_after=resume_after
        )
        if resume_after is None:
            break
        done += 1
    return done


def test_transactions_are_planned_with_bounded_rows_in_order(settings: Settings) -> None:
    settings.FEED_BATCH_MAX_ROWS = 1_000
    follow_all(range(10, 410), followee=1)
    follow_all(range(10, 2_010), followee=3)
    posts = [PostCreatedFactory(author_id=author) for author in (1, 1, 1, 3, 2, 1)]
    parts = handlers.FeedHandlers().plan(posts)
    assert [post for part in parts for post in part] == posts
    assert [[post.key for post in part] for part in parts] == [[1, 1], [1], [3], [2, 1]]
