"""What workers tell of changed feeds through Redis, for the live streams of the API.

The announcements that Redis makes of keys (client tracking) come only for pages that are cached,
and do not say what has changed. So whoever voids pages also says on a channel which posts are new,
and in whose feeds. Nothing rests on a message alone: after a gap every stream is counted anew.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

IDS_A_MESSAGE = 8_192
USERS_A_RECORD = 4_096
# In the place of a post: how far these feeds were seen has changed, and nothing else.
MARK = 0
MOST_POSTS = 100  # as many as are ever counted: of more, the newest
_INT64 = "q"
_HEAD = 3


class Change(NamedTuple):
    """New posts in the feeds of these users, and of all who pull from an author. Without posts:
    something else has changed there.
    """

    user_ids: Collection[int] = ()
    pulled_from: int = 0  # 0: nobody
    post_ids: Collection[int] = ()


def channel_of(era: str) -> bytes:
    """Return where changes are announced while these pages count.

    A channel is one for all databases of a Redis, and others may use it for the like.
    """
    return f"live:{era}".encode()


def announce(pipeline: Any, era: str, changes: Iterable[Change]) -> None:
    """Add the changes to `pipeline`, in messages of 64 kB at most."""
    channel = channel_of(era)
    message = array(_INT64)
    for change in changes:
        for record in _records(change):
            if len(message) + len(record) > IDS_A_MESSAGE:
                pipeline.publish(channel, message.tobytes())
                message = array(_INT64)
            message += record
    if message:
        pipeline.publish(channel, message.tobytes())


def _records(change: Change) -> Iterator["array[int]"]:
    """Yield the change in parts: the author, how many posts and users there are, then these."""
    posts = sorted(change.post_ids)[-MOST_POSTS:]
    users = array(_INT64, change.user_ids)
    pulled_from = change.pulled_from
    for start in range(0, len(users) or 1, USERS_A_RECORD):
        part = users[start : start + USERS_A_RECORD]
        yield array(_INT64, [pulled_from, len(posts), len(part), *posts]) + part
        pulled_from = 0


def changes_in(data: bytes) -> list[Change]:
    """Return the changes in a message; none if it is not one of ours."""
    ids = array(_INT64)
    if len(data) % ids.itemsize:
        return []
    ids.frombytes(data)
    changes: list[Change] = []
    at = 0
    while at < len(ids):
        head = ids[at : at + _HEAD]
        if len(head) < _HEAD or min(head) < 0:
            return []
        pulled_from, post_count, user_count = head
        posts_at = at + _HEAD
        users_at = posts_at + post_count
        at = users_at + user_count
        if at > len(ids):
            return []
        changes.append(Change(ids[users_at:at], pulled_from, ids[posts_at:users_at]))
    return changes
