"""What one can do about other users: each act is one event in Kafka and touches no table."""

from eventbus import producer
from eventbus.ids.idempotency import Ids
from eventbus.record import Headers
from feeds.events import (
    UserBlocked,
    UserFollowed,
    UserMuted,
    UserUnblocked,
    UserUnfollowed,
    UserUnmuted,
)


def follow(*, follower_id: int, followee_id: int, ids: Ids, headers: Headers = ()) -> UserFollowed:
    """Publish that one user follows another. Raises `PublishFailed`."""
    fact = UserFollowed(ids.event_id, follower_id, followee_id)
    producer.publish(fact.to_event(), headers)
    return fact


def unfollow(
    *, follower_id: int, followee_id: int, ids: Ids, headers: Headers = ()
) -> UserUnfollowed:
    """Publish that one user no longer follows another. Raises `PublishFailed`."""
    fact = UserUnfollowed(ids.event_id, follower_id, followee_id)
    producer.publish(fact.to_event(), headers)
    return fact


def mute(*, user_id: int, muted_id: int, ids: Ids, headers: Headers = ()) -> UserMuted:
    """Publish that a user wants none of another's posts in their feed. Raises `PublishFailed`."""
    fact = UserMuted(ids.event_id, user_id, muted_id)
    producer.publish(fact.to_event(), headers)
    return fact


def unmute(*, user_id: int, muted_id: int, ids: Ids, headers: Headers = ()) -> UserUnmuted:
    """Publish that a user no longer minds another's posts. Raises `PublishFailed`."""
    fact = UserUnmuted(ids.event_id, user_id, muted_id)
    producer.publish(fact.to_event(), headers)
    return fact


def block(*, blocker_id: int, blocked_id: int, ids: Ids, headers: Headers = ()) -> UserBlocked:
    """Publish that a user blocks another. Raises `PublishFailed`."""
    fact = UserBlocked(ids.event_id, blocker_id, blocked_id)
    producer.publish(fact.to_event(), headers)
    return fact


def unblock(*, blocker_id: int, blocked_id: int, ids: Ids, headers: Headers = ()) -> UserUnblocked:
    """Publish that a user no longer blocks another. Raises `PublishFailed`."""
    fact = UserUnblocked(ids.event_id, blocker_id, blocked_id)
    producer.publish(fact.to_event(), headers)
    return fact
