"""An event, whatever form it travels in."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """A fact that happened once.

    `key` is the user whose posts or audience it changes: its partition and its lock.
    """

    event_id: int
    type: str
    version: int
    actor_id: int
    occurred_at: datetime
    key: int
    payload: Fields
