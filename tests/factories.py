"""Rows and facts to test with."""

import itertools
from collections.abc import Sequence
from typing import Any

import factory

from eventbus.database.current import atomic
from eventbus.ids.snowflake import EPOCH_MS, compose, time_of
from feeds import handlers
from feeds.events import (
    UserBlocked,
    UserErased,
    UserFollowed,
    UserMuted,
    UserUnblocked,
    UserUnfollowed,
    UserUnmuted,
)
from feeds.seen import FeedSeen
from posts.events import PostCreated, PostDeleted, PostEdited

_sequence = itertools.count(1)


def next_id() -> int:
    """Return an id above every earlier one, as if minted a second later."""
    return compose(EPOCH_MS + 1_000 * next(_sequence), 1, 0)


class PostCreatedFactory(factory.Factory):
    class Meta:
        model = PostCreated

    event_id = factory.LazyFunction(next_id)
    post_id = factory.LazyFunction(next_id)
    author_id = 1
    content = factory.Sequence(lambda n: f"post {n} 世界")
    created_at = factory.LazyAttribute(lambda post: time_of(post.post_id))


class PostEditedFactory(factory.Factory):
    class Meta:
        model = PostEdited

    event_id = factory.LazyFunction(next_id)
    post_id = factory.LazyFunction(next_id)
    author_id = 1
    content = factory.Sequence(lambda n: f"edited {n} 世界")
    changes_data = False
    data = None


class PostDeletedFactory(factory.Factory):
    class Meta:
        model = PostDeleted

    event_id = factory.LazyFunction(next_id)
    post_id = factory.LazyFunction(next_id)
    author_id = 1


class UserFollowedFactory(factory.Factory):
    class Meta:
        model = UserFollowed

    event_id = factory.LazyFunction(next_id)
    follower_id = 2
    followee_id = 1


class UserUnfollowedFactory(factory.Factory):
    class Meta:
        model = UserUnfollowed

    event_id = factory.LazyFunction(next_id)
    follower_id = 2
    followee_id = 1


class UserMutedFactory(factory.Factory):
    class Meta:
        model = UserMuted

    event_id = factory.LazyFunction(next_id)
    user_id = 2
    muted_id = 1


class UserUnmutedFactory(factory.Factory):
    class Meta:
        model = UserUnmuted

    event_id = factory.LazyFunction(next_id)
    user_id = 2
    muted_id = 1


class UserBlockedFactory(factory.Factory):
    class Meta:
        model = UserBlocked

    event_id = factory.LazyFunction(next_id)
    blocker_id = 2
    blocked_id = 1


class UserUnblockedFactory(factory.Factory):
    class Meta:
        model = UserUnblocked

    event_id = factory.LazyFunction(next_id)
    blocker_id = 2
    blocked_id = 1


class FeedSeenFactory(factory.Factory):
    class Meta:
        model = FeedSeen

    event_id = factory.LazyFunction(next_id)
    user_id = 2
    post_id = factory.LazyFunction(next_id)


class UserErasedFactory(factory.Factory):
    class Meta:
        model = UserErased

    event_id = factory.LazyFunction(next_id)
    user_id = 1
    actor_id = factory.SelfAttribute("user_id")


@atomic()
def apply(*facts: Any, careful: bool = False) -> None:
    """Apply facts as one batch, as a worker's transaction does."""
    handlers.FeedHandlers().apply(facts, careful=careful, resume_after=None)


def follow_all(followers: Sequence[int], followee: int) -> None:
    apply(
        *(UserFollowedFactory(follower_id=follower, followee_id=followee) for follower in followers)
    )
