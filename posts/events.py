"""The facts about posts, as they travel in events; their key is the author."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from eventbus.envelope import read_minted_id, read_text
from eventbus.event import Event, Fields
from eventbus.exceptions import InvalidEvent
from eventbus.ids.snowflake import time_of

MAX_CONTENT_CHARS = 5_000
VERSION = 1


@dataclass(frozen=True, slots=True)
class PostFact:
    """What all facts about a post have."""

    TYPE: ClassVar[str]

    event_id: int
    post_id: int
    author_id: int

    @property
    def key(self) -> int:
        return self.author_id

    @property
    def users(self) -> set[int]:
        """Everybody whom the fact names."""
        return {self.author_id}

    def _to_event(self, occurred_at: datetime, payload: Fields) -> Event:
        return Event(
            event_id=self.event_id,
            type=self.TYPE,
            version=VERSION,
            actor_id=self.author_id,
            occurred_at=occurred_at,
            key=self.author_id,
            payload=payload,
        )


@dataclass(frozen=True, slots=True)
class PostCreated(PostFact):
    """`post.created`: the actor wrote a post."""

    TYPE = "post.created"

    content: str
    created_at: datetime

    @classmethod
    def from_event(cls, event: Event) -> "PostCreated":
        """Return the fact in `event`. Raises `InvalidEvent`."""
        _require_author_key(event)
        return cls(
            event_id=event.event_id,
            post_id=read_minted_id(event.payload, "post_id"),
            author_id=event.actor_id,
            content=read_text(event.payload, "content", max_length=MAX_CONTENT_CHARS),
            created_at=event.occurred_at,
        )

    def to_event(self) -> Event:
        payload = {"post_id": str(self.post_id), "content": self.content}
        return self._to_event(self.created_at, payload)


@dataclass(frozen=True, slots=True)
class PostDeleted(PostFact):
    """`post.deleted`: the author took the post back."""

    TYPE = "post.deleted"

    @property
    def post_created_at(self) -> datetime:
        return time_of(self.post_id)

    @classmethod
    def from_event(cls, event: Event) -> "PostDeleted":
        """Return the fact in `event`. Raises `InvalidEvent`."""
        _require_author_key(event)
        return cls(
            event_id=event.event_id,
            post_id=read_minted_id(event.payload, "post_id"),
            author_id=event.actor_id,
        )

    def to_event(self) -> Event:
        return self._to_event(time_of(self.event_id), {"post_id": str(self.post_id)})


def _require_author_key(event: Event) -> None:
    if event.key != event.actor_id:
        raise InvalidEvent("The key must be the author.")
