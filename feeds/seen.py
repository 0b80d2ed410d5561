"""How far a user has seen their feed: the highest post id that they have named, the *marker*.

Whatever is at or below it is seen, whenever it came: also a post that arrives late under a lower
id, and what a new follow brings along. What is above it is unread. The marker never goes back, so
events may come in any order and any number of times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from eventbus.database.sql import bigints, execute
from eventbus.envelope import read_minted_id
from eventbus.event import Event
from eventbus.exceptions import InvalidEvent
from eventbus.ids import clock
from eventbus.ids.node_lease import LEASE_MS
from eventbus.ids.snowflake import milliseconds_of
from eventbus.models import BEFORE_ERASURE
from feeds.events import event_of

# What a process mints may lie ahead of the time by as much as it has leased.
MAX_AHEAD_MS = LEASE_MS

# A marker below the line that an erasure draws is none, whichever came first.
_RAISE = f"""
WITH seen AS MATERIALIZED (
    SELECT * FROM unnest(%(users)s::bigint[], %(posts)s::bigint[]) AS new (user_id, post_id)
    WHERE NOT {BEFORE_ERASURE.format(user="new.user_id", id="new.post_id")}
)
UPDATE feeds SET seen_post_id = seen.post_id FROM seen
WHERE feeds.user_id = seen.user_id AND feeds.user_id = ANY(%(users)s::bigint[])
  AND (seen_post_id IS NULL OR seen_post_id < seen.post_id)
"""  # noqa: S608 - composed of constants


@dataclass(frozen=True, slots=True)
class FeedSeen:
    """`feed.seen`: the actor has seen their feed up to a post."""

    TYPE: ClassVar[str] = "feed.seen"

    event_id: int
    user_id: int
    post_id: int

    @property
    def key(self) -> int:
        return self.user_id

    @property
    def users(self) -> set[int]:
        """Everybody whom the fact names."""
        return {self.user_id}

    @classmethod
    def from_event(cls, event: Event) -> "FeedSeen":
        """Return the fact in `event`. Raises `InvalidEvent`."""
        if event.key != event.actor_id:
            raise InvalidEvent("The key must be the user whose feed it is.")
        return cls(event.event_id, event.actor_id, read_minted_id(event.payload, "post_id"))

    def to_event(self) -> Event:
        return event_of(self, self.user_id, {"post_id": str(self.post_id)})


def is_ahead(post_id: int) -> bool:
    """Tell whether no post can have this id for some time to come."""
    return milliseconds_of(post_id) > clock.now_ms() + MAX_AHEAD_MS


def apply_seen(facts: Sequence[FeedSeen]) -> None:
    """Raise the markers of these users, whose `feeds` rows are locked, where they are lower."""
    highest: dict[int, int] = {}
    for fact in facts:
        highest[fact.user_id] = max(fact.post_id, highest.get(fact.user_id, 0))
    execute(_RAISE, {"users": bigints(highest), "posts": bigints(highest.values())})
