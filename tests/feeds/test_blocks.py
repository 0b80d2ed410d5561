"""Blocks: no follow between the two, in whatever order events come, and nothing of either shown to the
other.
"""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from django.db import transaction
from pytest_django import Settings

from feeds import blocks, housekeeping, imports, verification
from feeds.events import BlockFact
from feeds.handlers import FeedHandlers
from feeds.models import Feed, Follow
from feeds.read import here
from posts.models import Block
from posts.pagination import START, Position
from tests.factories import (
    PostCreatedFactory,
    UserBlockedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnfollowedFactory,
    UserUnmutedFactory,
    apply,
    follow_all,
)
from tests.feeds.model import expected_feed, feed, open_feed
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

ANN, BOB, EVE = 1, 2, 3


@pytest.fixture
def worker() -> Worker:
    """Ann and Bob follow each other, and Eve follows both."""
    follow_all([BOB, EVE], followee=ANN)
    follow_all([ANN, EVE], followee=BOB)
    return Worker()


def post(worker: Worker, author: int, count: int = 1) -> list[int]:
    """Have the author post; return the ids, newest first."""
    facts = [PostCreatedFactory(author_id=author) for _ in range(count)]
    worker.process(*facts)
    return [fact.post_id for fact in reversed(facts)]


def follow(follower: int, followee: int) -> Any:
    return UserFollowedFactory(follower_id=follower, followee_id=followee)


def state(follower: int, followee: int) -> str:
    row = Follow.objects.get(follower_id=follower, followee_id=followee)
    assert not (row.active and row.held)
    return "active" if row.active else "held" if row.held else "ended"


def followers() -> dict[int, int]:
    return dict(Feed.objects.values_list("user_id", "follower_count"))


@pytest.mark.parametrize("strategy", ["push", "pull"])
def test_a_block_ends_the_follows_both_ways_and_touches_nobody_else(
    worker: Worker, settings: Settings, strategy: str
) -> None:
    settings.FEED_STRATEGY = strategy
    by_ann, by_bob = post(worker, ANN, 2), post(worker, BOB, 2)
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB))
    assert (feed(ANN), feed(BOB), feed(EVE)) == (by_ann, by_bob, by_bob + by_ann)
    assert followers() == {ANN: 1, BOB: 1, EVE: 0}
    assert Follow.objects.followers_page(ANN, START, 5) == [EVE]
    assert Follow.objects.following_page(ANN, START, 5) == []
    assert verification.verify().equal

    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=BOB))
    assert (feed(ANN), feed(BOB)) == (by_ann, by_bob), "what a block has ended stays ended"
    worker.process(follow(BOB, ANN))
    assert feed(BOB) == by_bob + by_ann
    assert verification.verify().equal


def test_a_block_made_from_the_other_side_is_lifted_by_neither_alone(worker: Worker) -> None:
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB))
    worker.process(UserBlockedFactory(blocker_id=BOB, blocked_id=ANN))
    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=BOB))
    worker.process(follow(EVE, ANN), follow(ANN, BOB))
    assert state(ANN, BOB) == "held"
    worker.process(UserUnblockedFactory(blocker_id=BOB, blocked_id=ANN))
    assert state(ANN, BOB) == "active"


def test_a_follow_that_was_accepted_while_blocked_waits_for_the_block_to_be_lifted(
    worker: Worker,
) -> None:
    by_ann = post(worker, ANN, 2)
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB), follow(BOB, ANN))
    assert (state(BOB, ANN), feed(BOB), followers()[ANN]) == ("held", [], 1)
    assert verification.verify().equal
    by_ann = post(worker, ANN) + by_ann
    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=BOB))
    assert (state(BOB, ANN), feed(BOB), followers()[ANN]) == ("active", by_ann, 2)


def test_who_gives_up_a_held_follow_does_not_follow_afterwards(worker: Worker) -> None:
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB), follow(BOB, ANN))
    worker.process(UserUnfollowedFactory(follower_id=BOB, followee_id=ANN))
    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=BOB))
    assert state(BOB, ANN) == "ended"


def test_a_muted_follow_comes_back_from_a_block_muted(worker: Worker) -> None:
    by_ann = post(worker, ANN)
    worker.process(UserMutedFactory(user_id=BOB, muted_id=ANN))
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB), follow(BOB, ANN))
    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=BOB))
    assert (state(BOB, ANN), feed(BOB)) == ("active", [])
    worker.process(UserUnmutedFactory(user_id=BOB, muted_id=ANN))
    assert feed(BOB) == by_ann


def test_every_order_of_a_follow_a_block_and_its_end_gives_the_same(worker: Worker) -> None:
    users = iter(range(100, 10_000, 2))
    for order in permutations(range(5)):
        one, other = next(users), next(users) + 1
        facts: list[Any] = [
            follow(one, other),
            UserBlockedFactory(blocker_id=other, blocked_id=one),
            follow(one, other),
            UserUnblockedFactory(blocker_id=other, blocked_id=one),
            PostCreatedFactory(author_id=other),
        ]
        for n in order:
            apply(facts[n], careful=True)
        assert feed(one) == expected_feed(facts, one) == [facts[4].post_id], order
    assert verification.verify().equal


def test_cached_pages_of_both_are_void_at_once(worker: Worker) -> None:
    [by_ann], [by_bob] = post(worker, ANN), post(worker, BOB)
    assert open_feed(ANN)[0] == open_feed(BOB)[0] == [by_bob, by_ann]
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB))
    assert (open_feed(ANN)[0], open_feed(BOB)[0]) == ([by_ann], [by_bob])


def test_a_feed_at_rest_is_still_at_rest_when_the_block_is_lifted(worker: Worker) -> None:
    [by_ann] = post(worker, ANN)
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB), follow(BOB, ANN))
    with transaction.atomic():
        Feed.objects.filter(user_id=BOB).update(last_read_at="2025-01-01T00:00:00Z")
        housekeeping.put_to_rest([BOB])
    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=BOB))
    assert Follow.objects.get(follower_id=BOB, followee_id=ANN).idle
    assert feed(BOB) == [by_ann]
    assert verification.verify().equal


def test_a_block_locks_both_users_beside_the_keys_of_the_others() -> None:
    facts = [
        PostCreatedFactory(author_id=7),
        follow(8, 9),
        UserBlockedFactory(blocker_id=ANN, blocked_id=BOB),
    ]
    assert FeedHandlers().locked_keys(facts) == {7, 9, ANN, BOB}


@pytest.mark.parametrize("fact", [UserBlockedFactory, UserUnblockedFactory])
def test_blocks_cost_the_same_queries_for_any_number_of_pairs(
    worker: Worker, django_assert_num_queries: Any, fact: Callable[..., BlockFact]
) -> None:
    facts = [fact(blocker_id=ANN, blocked_id=other) for other in range(10, 60)]
    with django_assert_num_queries(2):  # the registers, the follows
        blocks.apply_blocks(facts)


def test_the_list_of_the_blocked_is_paged(worker: Worker) -> None:
    worker.process(*[UserBlockedFactory(blocker_id=ANN, blocked_id=n) for n in range(10, 16)])
    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=12))
    assert blocks.blocked_page(ANN, START, 3) == [15, 14, 13]
    assert blocks.blocked_page(ANN, Position(12, newer=False), 3) == [11, 10]
    assert blocks.blocked_page(ANN, Position(12, newer=True), 2) == [13, 14]
    assert blocks.blocked_page(10, START, 3) == [], "who is blocked is not told in a list"


# Imports ------------------------------------------------------------------------------------------


def test_an_import_does_not_bring_back_what_a_block_has_ended(worker: Worker) -> None:
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB))
    worker.process(UserBlockedFactory(blocker_id=8, blocked_id=9))
    worker.process(UserUnblockedFactory(blocker_id=8, blocked_id=9))
    worker.process(UserUnblockedFactory(blocker_id=6, blocked_id=7))  # never blocked
    pairs = [(BOB, ANN), (ANN, BOB), (8, 9), (9, 8), (6, 7), (7, 6)]
    assert imports.import_follows(pairs).new_follows == 2
    here.pages.wait_until_noticed()
    active = Follow.objects.filter(active=True, follower_id__lt=10)
    assert set(active.values_list("follower_id", "followee_id")) == {
        (6, 7), (7, 6), (EVE, ANN), (EVE, BOB)
    }  # fmt: skip
    assert verification.verify().equal


def test_an_import_later_than_a_block_is_held_by_it(worker: Worker) -> None:
    block = UserBlockedFactory(blocker_id=ANN, blocked_id=9)
    worker.process(block)
    assert (
        imports.import_follows([(9, ANN), (EVE, 9)], event_id=block.event_id + 1).new_follows == 1
    )
    here.pages.wait_until_noticed()
    assert (state(9, ANN), state(EVE, 9)) == ("held", "active")
    assert verification.verify().equal
    worker.process(UserUnblockedFactory(blocker_id=ANN, blocked_id=9))
    assert state(9, ANN) == "active"
    assert verification.verify().equal


# Damage -------------------------------------------------------------------------------------------


def _follow_in_spite_of_the_block() -> None:
    Follow.objects.filter(follower_id=BOB, followee_id=ANN).update(active=True, held=False)


def _forget_the_block() -> None:
    Block.objects.all().delete()


def _hold_without_a_block() -> None:
    Follow.objects.filter(follower_id=EVE, followee_id=ANN).update(active=False, held=True)


def _block_without_an_effect() -> None:
    Block.objects.create(blocker_id=EVE, blocked_id=ANN, blocked_event_id=2**60)


@pytest.mark.parametrize(
    ("damage", "state_of_bob", "state_of_eve"),
    [
        (_follow_in_spite_of_the_block, "held", "active"),
        (_forget_the_block, "active", "active"),
        (_hold_without_a_block, "held", "active"),
        (_block_without_an_effect, "held", "ended"),
    ],
)
def test_a_follow_that_contradicts_the_blocks_is_found_and_repaired(
    worker: Worker, damage: Callable[[], None], state_of_bob: str, state_of_eve: str
) -> None:
    post(worker, ANN, 2)
    worker.process(UserBlockedFactory(blocker_id=ANN, blocked_id=BOB), follow(BOB, ANN))
    assert verification.verify().equal
    damage()
    assert verification.verify().wrong_states > 0
    verification.repair()
    here.pages.wait_until_noticed()
    assert verification.verify().equal
    assert (state(BOB, ANN), state(EVE, ANN)) == (state_of_bob, state_of_eve)
    counts = Follow.objects.filter(followee_id=ANN, active=True).count()
    assert followers()[ANN] == counts
