"""What one can do about feeds and other users: each act is one event in Kafka and touches no
table.
"""

from collections.abc import Sequence

from eventbus import producer
from eventbus.ids.idempotency import Ids
from eventbus.record import Headers
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


def follow(*, follower_id: int, followee_id: int, ids: Ids, headers: Headers = ()) -> UserFollowed:
    """Publish that one user follows another. Raises `PublishFailed`."""
    fact = UserFollowed(ids.event_id, follower_id, followee_id)
    producer.publish(fact.to_event(), headers)
    return fact


def follow_all(facts: Sequence[UserFollowed], *, headers: Headers = ()) -> None:
    """Publish all these follows at once. Raises `PublishFailed`: then some may be in Kafka."""
    if facts:
        producer.publish_all([fact.to_event() for fact in facts], headers)


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


def mark_seen(*, user_id: int, post_id: int, ids: Ids, headers: Headers = ()) -> FeedSeen:
    """Publish that a user has seen their feed up to this post. Raises `PublishFailed`."""
    fact = FeedSeen(ids.event_id, user_id, post_id)
    producer.publish(fact.to_event(), headers)
    return fact


def unblock(*, blocker_id: int, blocked_id: int, ids: Ids, headers: Headers = ()) -> UserUnblocked:
    """Publish that a user no longer blocks another. Raises `PublishFailed`."""
    fact = UserUnblocked(ids.event_id, blocker_id, blocked_id)
    producer.publish(fact.to_event(), headers)
    return fact


def erase_user(*, user_id: int, actor_id: int, ids: Ids, headers: Headers = ()) -> UserErased:
    """Publish that a user is erased, as `actor_id` asks. Raises `PublishFailed`."""
    fact = UserErased(ids.event_id, user_id, actor_id)
    producer.publish(fact.to_event(), headers)
    return fact
