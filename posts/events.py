"""The facts about posts, as they travel in events; their key is the author."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from eventbus.envelope import read_minted_id, read_text
from eventbus.event import Event, Fields
from eventbus.exceptions import InvalidEvent
from eventbus.ids.snowflake import time_of
from posts.data import DataRefused, fragment, text_of

MAX_CONTENT_CHARS = 5_000


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

    def _to_event(self, occurred_at: datetime, payload: Fields, version: int = 1) -> Event:
        return Event(
            event_id=self.event_id,
            type=self.TYPE,
            version=version,
            actor_id=self.author_id,
            occurred_at=occurred_at,
            key=self.author_id,
            payload=payload,
        )


@dataclass(frozen=True, slots=True)
class PostCreated(PostFact):
    """`post.created`: the actor wrote a post.

    Version 2 has `data`. A post without is published in version 1, so that workers of a release
    that knows no other go on until somebody uses it.
    """

    TYPE = "post.created"

    content: str
    created_at: datetime
    data: str | None = None  # compact JSON

    @classmethod
    def from_event(cls, event: Event) -> "PostCreated":
        """Return the fact in `event`, of either version. Raises `InvalidEvent`."""
        _require_author_key(event)
        data = None if event.version == 1 else _read_data(event.payload)
        return cls(
            event_id=event.event_id,
            post_id=read_minted_id(event.payload, "post_id"),
            author_id=event.actor_id,
            content=_read_content(event.payload, may_be_empty=data is not None),
            created_at=event.occurred_at,
            data=data,
        )

    def to_event(self) -> Event:
        payload: dict[str, Any] = {"post_id": str(self.post_id), "content": self.content}
        if self.data is None:
            return self._to_event(self.created_at, payload)
        payload["data"] = fragment(self.data)
        return self._to_event(self.created_at, payload, version=2)


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


@dataclass(frozen=True, slots=True)
class PostEdited(PostFact):
    """`post.edited`: the author changed the post's content, its data, or both."""

    TYPE = "post.edited"

    content: str | None  # None: it stays
    changes_data: bool
    data: str | None  # compact JSON; None: it has none any more, if it changes

    @property
    def edited_at(self) -> datetime:
        return time_of(self.event_id)

    @classmethod
    def from_event(cls, event: Event) -> "PostEdited":
        """Return the fact in `event`. Raises `InvalidEvent`."""
        _require_author_key(event)
        payload = event.payload
        if not payload.keys() & {"content", "data"}:
            raise InvalidEvent("An edit must name content or data.")
        content = _read_content(payload, may_be_empty=True) if "content" in payload else None
        return cls(
            event_id=event.event_id,
            post_id=read_minted_id(payload, "post_id"),
            author_id=event.actor_id,
            content=content,
            changes_data="data" in payload,
            data=None if payload.get("data") is None else _read_data(payload),
        )

    def to_event(self) -> Event:
        payload: dict[str, Any] = {"post_id": str(self.post_id)}
        if self.content is not None:
            payload["content"] = self.content
        if self.changes_data:
            payload["data"] = fragment(self.data)
        return self._to_event(self.edited_at, payload)


def _read_content(payload: Fields, *, may_be_empty: bool) -> str:
    shortest = 0 if may_be_empty else 1
    return read_text(payload, "content", max_length=MAX_CONTENT_CHARS, min_length=shortest)


def _read_data(payload: Fields) -> str:
    try:
        return text_of(payload.get("data"))
    except DataRefused as error:
        raise InvalidEvent(str(error)) from error


def _require_author_key(event: Event) -> None:
    if event.key != event.actor_id:
        raise InvalidEvent("The key must be the author.")
