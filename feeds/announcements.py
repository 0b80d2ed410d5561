"""What workers tell of changed feeds through Redis, for the live streams of the API.

The announcements that Redis makes of keys (client tracking) come only for pages that are cached. A
stream has to hear of a feed whose page nobody has cached, so whoever voids pages says whose, on a
channel. Nothing rests on a message alone: after a gap every stream is counted anew.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence
from typing import Any

FEEDS, AUTHORS = b"live:feeds", b"live:authors"
IDS_A_MESSAGE = 1_000
_INT64 = "q"


def announce(pipeline: Any, user_ids: Sequence[int], authors: Collection[int]) -> None:
    """Add to `pipeline` that the feeds of these users, and those that pull from these authors, have
    changed.
    """
    for channel, ids in ((FEEDS, list(user_ids)), (AUTHORS, list(authors))):
        for start in range(0, len(ids), IDS_A_MESSAGE):
            part = array(_INT64, ids[start : start + IDS_A_MESSAGE])
            pipeline.publish(channel, part.tobytes())


def ids_in(data: bytes) -> Iterable[int]:
    """Return the ids in a message; none if it is not one of ours."""
    ids = array(_INT64)
    if len(data) % ids.itemsize == 0:
        ids.frombytes(data)
    return ids
