"""Follow events, and the way from any event to its fact."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus import envelope
from eventbus.exceptions import InvalidEvent, UnknownEventType
from eventbus.ids.snowflake import MAX_ID
from feeds import handlers
from feeds.events import (
    UserBlocked,
    UserFollowed,
    UserMuted,
    UserUnblocked,
    UserUnfollowed,
    UserUnmuted,
)
from tests.factories import (
    FeedSeenFactory,
    PostCreatedFactory,
    PostDeletedFactory,
    UserBlockedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnfollowedFactory,
    UserUnmutedFactory,
)

ids = st.integers(1, MAX_ID)

ONE_OF_EACH: list[Any] = [
    PostCreatedFactory(author_id=1),
    PostDeletedFactory(author_id=1),
    UserFollowedFactory(follower_id=2, followee_id=1),
    UserUnfollowedFactory(follower_id=2, followee_id=1),
    UserMutedFactory(user_id=2, muted_id=1),
    UserUnmutedFactory(user_id=2, muted_id=1),
    UserBlockedFactory(blocker_id=2, blocked_id=1),
    UserUnblockedFactory(blocker_id=2, blocked_id=1),
    FeedSeenFactory(user_id=1),
]


@pytest.mark.parametrize("fact", ONE_OF_EACH, ids=lambda fact: fact.TYPE)
def test_every_kind_of_event_is_found_by_its_type_and_comes_back_as_the_same_fact(
    fact: Any,
) -> None:
    event = fact.to_event()
    delivered = envelope.decode(envelope.encode(event), envelope.encode_key(event.key))
    assert handlers.FeedHandlers().to_fact(delivered) == fact


def test_every_kind_of_event_is_under_the_key_of_the_user_whose_audience_it_concerns() -> None:
    assert {fact.to_event().key for fact in ONE_OF_EACH} == {1}
    assert [fact.to_event().actor_id for fact in ONE_OF_EACH] == [1, 1, 2, 2, 2, 2, 2, 2, 1]


@given(st.sampled_from([UserFollowed, UserUnfollowed]), ids, ids, ids)
def test_a_follow_survives_the_journey_through_kafka(
    kind: type[UserFollowed] | type[UserUnfollowed],
    event_id: int,
    follower_id: int,
    followee_id: int,
) -> None:
    if follower_id == followee_id:
        followee_id = followee_id % MAX_ID + 1
    fact = kind(event_id, follower_id, followee_id)
    assert kind.from_event(fact.to_event()) == fact


@given(st.sampled_from([UserMuted, UserUnmuted]), ids, ids, ids)
def test_a_mute_survives_the_journey_through_kafka(
    kind: type[UserMuted] | type[UserUnmuted], event_id: int, user_id: int, muted_id: int
) -> None:
    if user_id == muted_id:
        muted_id = muted_id % MAX_ID + 1
    fact = kind(event_id, user_id, muted_id)
    assert kind.from_event(fact.to_event()) == fact


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"payload": {"user_id": "1"}}, "Nobody can mute themselves"),
        ({"payload": {}}, "user_id must be"),
        ({"payload": {"user_id": 2}}, "user_id must be"),
        ({"payload": {"user_id": "0"}}, "user_id must be"),
        ({"payload": {"user_id": str(MAX_ID + 1)}}, "user_id must be"),
        ({"version": 2}, "user.muted version 2"),
    ],
)
def test_a_mute_that_breaks_the_schema_is_refused(change: dict[str, Any], complaint: str) -> None:
    event = replace(UserMutedFactory(user_id=2, muted_id=1).to_event(), **change)
    with pytest.raises((InvalidEvent, UnknownEventType), match=complaint):
        handlers.FeedHandlers().to_fact(event)


@given(st.sampled_from([UserBlocked, UserUnblocked]), ids, ids, ids)
def test_a_block_survives_the_journey_through_kafka(
    kind: type[UserBlocked] | type[UserUnblocked], event_id: int, blocker_id: int, blocked_id: int
) -> None:
    if blocker_id == blocked_id:
        blocked_id = blocked_id % MAX_ID + 1
    fact = kind(event_id, blocker_id, blocked_id)
    assert kind.from_event(fact.to_event()) == fact


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"payload": {"blocker_id": "1"}}, "Nobody can block themselves"),
        ({"payload": {}}, "blocker_id must be"),
        ({"payload": {"blocker_id": 2}}, "blocker_id must be"),
        ({"payload": {"blocker_id": "0"}}, "blocker_id must be"),
        ({"payload": {"blocker_id": str(MAX_ID + 1)}}, "blocker_id must be"),
        ({"version": 2}, "user.blocked version 2"),
    ],
)
def test_a_block_that_breaks_the_schema_is_refused(change: dict[str, Any], complaint: str) -> None:
    event = replace(UserBlockedFactory(blocker_id=2, blocked_id=1).to_event(), **change)
    with pytest.raises((InvalidEvent, UnknownEventType), match=complaint):
        handlers.FeedHandlers().to_fact(event)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"payload": {"follower_id": "1"}}, "Nobody can follow themselves"),
        ({"payload": {}}, "follower_id must be"),
        ({"payload": {"follower_id": 2}}, "follower_id must be"),
        ({"payload": {"follower_id": "0"}}, "follower_id must be"),
        ({"payload": {"follower_id": str(MAX_ID + 1)}}, "follower_id must be"),
    ],
)
def test_a_follow_that_breaks_the_schema_is_refused(change: dict[str, Any], complaint: str) -> None:
    event = replace(UserFollowedFactory(follower_id=2, followee_id=1).to_event(), **change)
    with pytest.raises(InvalidEvent, match=complaint):
        handlers.FeedHandlers().to_fact(event)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"key": 3}, "The key must be the user"),
        ({"payload": {}}, "post_id must be"),
        ({"payload": {"post_id": 5}}, "post_id must be"),
        ({"payload": {"post_id": "0"}}, "post_id must be"),
        ({"payload": {"post_id": str(MAX_ID)}}, "post_id is an id from .* hours in the future"),
    ],
)
def test_a_marker_that_breaks_the_schema_is_refused(change: dict[str, Any], complaint: str) -> None:
    event = replace(FeedSeenFactory(user_id=2).to_event(), **change)
    with pytest.raises(InvalidEvent, match=complaint):
        handlers.FeedHandlers().to_fact(event)


@pytest.mark.parametrize("change", [{"type": "post.liked"}, {"version": 3}])
def test_a_type_or_version_nobody_handles_is_refused_by_name(change: dict[str, Any]) -> None:
    event = replace(PostCreatedFactory().to_event(), **change)
    with pytest.raises(UnknownEventType, match=f"{event.type} version {event.version}"):
        handlers.FeedHandlers().to_fact(event)
