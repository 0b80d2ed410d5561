"""64-bit, time-ordered, unique ids: 41 bits of milliseconds since 2024, 10 of node, 12 of sequence.

The layout is Twitter's snowflake. A generator may only mint ids of a node and a time range that it
has leased (`eventbus.ids.node_lease`), so uniqueness rests on the leases never overlapping and not
on any clock.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

from eventbus.exceptions import IdsUnavailable

EPOCH_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z
NODE_BITS = 10
SEQUENCE_BITS = 12
ID_BITS = NODE_BITS + SEQUENCE_BITS  # below those of the time
NODES = 1 << NODE_BITS
MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1
MAX_ID = (1 << 63) - 1
MAX_DIGITS = len(str(MAX_ID))


def is_id(number: object) -> bool:
    """Tell whether `number` may be an id, of a user or minted: a whole number of 1 to `MAX_ID`."""
    return type(number) is int and 1 <= number <= MAX_ID


def number_in(text: str) -> int | None:
    """Return the number of 0 to `MAX_ID` that `text` has in the digits 0 to 9; None for anything
    else.
    """
    if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS:
        number = int(text)
        return number if number <= MAX_ID else None
    return None


def id_in(text: object) -> int | None:
    """Return the id that `text` is in decimal, the only form of an id in JSON; None for anything
    else.
    """
    number = number_in(text) if isinstance(text, str) else None
    return number if number and str(number) == text else None


def compose(ms: int, node_id: int, sequence: int) -> int:
    """Return the id of `sequence` minted by `node_id` in Unix millisecond `ms`."""
    return ((ms - EPOCH_MS) << ID_BITS) | (node_id << SEQUENCE_BITS) | sequence


def milliseconds_of(snowflake_id: int) -> int:
    """Return the Unix millisecond in which the id was minted."""
    return (snowflake_id >> ID_BITS) + EPOCH_MS


def time_of(snowflake_id: int) -> datetime:
    """Return the UTC time, to the millisecond, at which the id was minted."""
    return _time_at(milliseconds_of(snowflake_id))


# Under load several posts are minted in a millisecond, and each asks for its time.
@lru_cache(maxsize=1_000)
def _time_at(unix_ms: int) -> datetime:
    seconds, ms = divmod(unix_ms, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=ms * 1000)


class Generator:
    """Mints strictly increasing ids of one node within one leased time range; safe for threads.

    `clock` returns Unix milliseconds, and may raise `IdsUnavailable`; it must not wait.
    """

    def __init__(
        self, node_id: int, start_ms: int, until_ms: int, clock: Callable[[], int]
    ) -> None:
        self.node_id = node_id
        self.until_ms = until_ms
        self.last_ms = start_ms - 1
        self._sequence = MAX_SEQUENCE
        self._clock = clock
        self._lock = threading.Lock()

    def next_id(self) -> int:
        """Return an id above every earlier one, as `next_run` does several."""
        return self.next_run(1)[0]

    def next_run(self, count: int) -> range:
        """Return `count` consecutive ids, of one millisecond, above every earlier one, also when
        the clock steps back. Never waits.

        `count` is at most `MAX_SEQUENCE` + 1. Raises `IdsUnavailable` when the leased time range is used up,
        or the clock does not know the time.
        """
        with self._lock:
            now = self._clock()
            if now > self.last_ms:
                ms, sequence = now, 0
            elif self._sequence + count <= MAX_SEQUENCE:
                ms, sequence = self.last_ms, self._sequence + 1
            else:
                ms, sequence = self.last_ms + 1, 0
            if ms > self.until_ms:
                raise IdsUnavailable("The lease by which this process mints ids has run out.")
            self.last_ms, self._sequence = ms, sequence + count - 1
        first = compose(ms, self.node_id, sequence)
        return range(first, first + count)

    def end(self) -> int:
        """Mint no more ids; return the Unix millisecond up to which this has minted any."""
        with self._lock:
            self.until_ms = self.last_ms
            self._sequence = MAX_SEQUENCE
            return self.last_ms
