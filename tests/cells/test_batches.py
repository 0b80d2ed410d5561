"""What a worker of each cell commits of the batches that both get."""

from typing import Any

import pytest

from eventbus import cells
from eventbus.cells import Cell
from eventbus.models import ProcessedEvent
from feeds import verification
from feeds.housekeeping import walk
from feeds.models import Feed, Follow, Mute
from feeds.rebuild import rebuild
from posts.models import Block, Post
from tests.cells.maps import DATABASES
from tests.cells.test_handlers import assert_no_feed_of_others
from tests.factories import (
    FeedSeenFactory,
    PostCreatedFactory,
    UserBlockedFactory,
    UserFollowedFactory,
    UserMutedFactory,
)
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True, databases=DATABASES)


def both_know(two_cells: list[Cell], *facts: Any) -> None:
    for cell in two_cells:
        with cells.on(cell):
            worker = Worker()
            worker.process(*facts)
            assert worker.dead_letters == []


def test_each_cell_has_all_posts_and_the_rest_by_whom_it_is_about(two_cells: list[Cell]) -> None:
    post = PostCreatedFactory(author_id=4)
    facts: list[Any] = [
        post,
        UserFollowedFactory(follower_id=1, followee_id=4),
        UserMutedFactory(user_id=2, muted_id=5),
        FeedSeenFactory(user_id=3, post_id=post.post_id),
        UserBlockedFactory(blocker_id=1, blocked_id=6),
    ]
    both_know(two_cells, *facts)
    a, b = two_cells
    with cells.on(a):
        assert (Follow.objects.count(), Mute.objects.count()) == (1, 1)
        assert Feed.objects.get(user_id=3).seen_post_id == post.post_id
    with cells.on(b):
        assert (Follow.objects.count(), Mute.objects.count()) == (0, 0)
        assert not Feed.objects.filter(seen_post_id__isnull=False).exists()
    for cell in two_cells:
        with cells.on(cell):
            assert ProcessedEvent.objects.count() == len(facts)
            assert (Post.objects.count(), Block.objects.count()) == (1, 1)


def test_nothing_wakes_a_feed_that_another_cell_holds(two_cells: list[Cell]) -> None:
    both_know(two_cells, PostCreatedFactory(author_id=4))
    with cells.on(two_cells[0]):
        rebuild([4])
        walk()
        assert_no_feed_of_others(two_cells[0])
        Feed.objects.filter(user_id=4).update(idle=False, floor=0)
        assert verification.verify([4]).wrong_states == 1
        verification.repair([4])
        assert verification.verify([4]).equal
        assert_no_feed_of_others(two_cells[0])
