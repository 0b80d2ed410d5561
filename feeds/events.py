"""The facts about users, as they travel in events; their key is the one whose audience changes: the
followee, who is muted, who is blocked, or who is erased.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from eventbus.envelope import read_id
from eventbus.event import Event, Fields
from eventbus.exceptions import InvalidEvent
from eventbus.ids.snowflake import time_of
from eventbus.subscription import Fact

VERSION = 1


class KeyedFact(Fact, Protocol):
    """A fact that can be made an event of."""

    TYPE: ClassVar[str]

    @property
    def key(self) -> int: ...


def event_of(fact: KeyedFact, actor_id: int, payload: Fields) -> Event:
    """Return the event of a fact, which happened when its id was made."""
    return Event(
        event_id=fact.event_id,
        type=fact.TYPE,
        version=VERSION,
        actor_id=actor_id,
        occurred_at=time_of(fact.event_id),
        key=fact.key,
        payload=payload,
    )


@dataclass(frozen=True, slots=True)
class FollowFact:
    TYPE: ClassVar[str]

    event_id: int
    follower_id: int
    followee_id: int

    @property
    def key(self) -> int:
        return self.followee_id

    @property
    def users(self) -> set[int]:
        """Everybody whom the fact names."""
        return {self.follower_id, self.followee_id}

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return the fact in `event`. Raises `InvalidEvent`."""
        follower_id = read_id(event.payload, "follower_id")
        if follower_id == event.key:
            raise InvalidEvent("Nobody can follow themselves.")
        return cls(event_id=event.event_id, follower_id=follower_id, followee_id=event.key)

    def to_event(self) -> Event:
        return event_of(self, self.follower_id, {"follower_id": str(self.follower_id)})


class UserFollowed(FollowFact):
    """`user.followed`: the follower wants the followee's posts in their feed."""

    TYPE = "user.followed"


class UserUnfollowed(FollowFact):
    """`user.unfollowed`: the follower no longer does."""

    TYPE = "user.unfollowed"


@dataclass(frozen=True, slots=True)
class MuteFact:
    TYPE: ClassVar[str]

    event_id: int
    user_id: int
    muted_id: int

    @property
    def key(self) -> int:
        return self.muted_id

    @property
    def users(self) -> set[int]:
        """Everybody whom the fact names."""
        return {self.user_id, self.muted_id}

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return the fact in `event`. Raises `InvalidEvent`."""
        user_id = read_id(event.payload, "user_id")
        if user_id == event.key:
            raise InvalidEvent("Nobody can mute themselves.")
        return cls(event_id=event.event_id, user_id=user_id, muted_id=event.key)

    def to_event(self) -> Event:
        return event_of(self, self.user_id, {"user_id": str(self.user_id)})


class UserMuted(MuteFact):
    """`user.muted`: the user wants none of the other's posts in their feed, followed or not."""

    TYPE = "user.muted"


class UserUnmuted(MuteFact):
    """`user.unmuted`: the user no longer minds them."""

    TYPE = "user.unmuted"


@dataclass(frozen=True, slots=True)
class BlockFact:
    """It changes the audience of both, so both are locked."""

    TYPE: ClassVar[str]

    event_id: int
    blocker_id: int
    blocked_id: int

    @property
    def key(self) -> int:
        return self.blocked_id

    @property
    def users(self) -> set[int]:
        """Everybody whom the fact names."""
        return {self.blocker_id, self.blocked_id}

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return the fact in `event`. Raises `InvalidEvent`."""
        blocker_id = read_id(event.payload, "blocker_id")
        if blocker_id == event.key:
            raise InvalidEvent("Nobody can block themselves.")
        return cls(event_id=event.event_id, blocker_id=blocker_id, blocked_id=event.key)

    def to_event(self) -> Event:
        return event_of(self, self.blocker_id, {"blocker_id": str(self.blocker_id)})


class UserBlocked(BlockFact):
    """`user.blocked`: neither of the two is to follow the other, nor to see anything of them."""

    TYPE = "user.blocked"


class UserUnblocked(BlockFact):
    """`user.unblocked`: the blocker takes that back; the follows that it ended stay ended."""

    TYPE = "user.unblocked"


@dataclass(frozen=True, slots=True)
class UserErased:
    """`user.erased`: nothing the user did before counts, and all that is held of it goes."""

    TYPE: ClassVar[str] = "user.erased"

    event_id: int
    user_id: int
    actor_id: int  # who asked for it

    @property
    def key(self) -> int:
        return self.user_id

    @property
    def users(self) -> set[int]:
        """Everybody whom the fact changes."""
        return {self.user_id}

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return the fact in `event`."""
        return cls(event_id=event.event_id, user_id=event.key, actor_id=event.actor_id)

    def to_event(self) -> Event:
        return event_of(self, self.actor_id, {})
