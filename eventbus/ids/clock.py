"""What time it is by PostgreSQL: the one clock by which ids are minted and leases are counted.

The clocks of hosts differ by seconds, and the highest event id wins. So a process reads
PostgreSQL's clock now and then, and in between counts on from the reading by the time that has
passed here, which no one can set or correct. How wrong that may be is known: half of what the
reading took, and `DRIFT` of its age.

What counts the time goes on while a Linux host is suspended. Elsewhere, and in a virtual machine
that was paused, it may stand still; then this host's own clock, once set right, disagrees with it,
and the reading is not trusted any more.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from eventbus.database.current import connection
from eventbus.database.sql import fetch
from eventbus.exceptions import IdsUnavailable

# The most that a reading may be wrong by. Two changes that are further apart get ids in their
# order, on any hosts.
MAX_DOUBT_MS = 500
# A reading that took longer is repeated. With the drift of ten minutes on top, `MAX_DOUBT_MS` is
# kept.
MAX_ROUND_TRIP_MS = 400
READINGS = 3
# By how much what counts here may be fast or slow: Linux takes no clock of a host to be worse.
DRIFT = 500e-6

NS_PER_MS = 1_000_000

_READ = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"


@dataclass(frozen=True, slots=True)
class Reading:
    """PostgreSQL's time at one moment, and what this host's own counts were then."""

    database_ms: int
    counted_ns: int
    host_ms: int
    round_trip_ms: float

    def now_ms(self) -> int:
        """Return PostgreSQL's time now, as counted on from the reading."""
        return self.database_ms + self._age_ns() // NS_PER_MS

    def doubt_ms(self) -> float:
        """Return by how much `now_ms` may be wrong."""
        return self.round_trip_ms / 2 + self._age_ns() / NS_PER_MS * DRIFT

    def is_contradicted(self) -> bool:
        """Tell whether this host's own clock has not gone on as far: it was set, or what counts
        stood still.
        """
        passed_on_host = host_ms() - self.host_ms
        return abs(passed_on_host - self._age_ns() / NS_PER_MS) > MAX_DOUBT_MS

    def _age_ns(self) -> int:
        return _counted_ns() - self.counted_ns


_reading: Reading | None = None


def read() -> int:
    """Read the clock of the PostgreSQL we are on, remember the reading for this process, and return
    its time in milliseconds. Who mints is on the one that ids come from (`eventbus.ids.node_lease`).

    A server that is slow to answer is asked again, and a reading that knows better is kept. Raises
    `DatabaseError`.
    """
    global _reading
    reading = _best_reading()
    known = _reading
    is_exact = reading.round_trip_ms <= MAX_ROUND_TRIP_MS
    if (
        known is None
        or is_exact
        or known.is_contradicted()
        or reading.doubt_ms() < known.doubt_ms()
    ):
        _reading = reading
    return reading.now_ms()


def now_ms() -> int:
    """Return the time in milliseconds as well as this process knows it: by PostgreSQL, or by this
    host.

    Never waits. This host's clock counts before the first reading; where it contradicts the
    reading, the later of both.
    """
    reading = _reading
    if reading is None:
        return host_ms()
    if reading.is_contradicted():
        return max(reading.now_ms(), host_ms())
    return reading.now_ms()


def exact_now_ms() -> int:
    """Return PostgreSQL's time in milliseconds, at most `MAX_DOUBT_MS` wrong. Never waits.

    Raises `IdsUnavailable` when that is not known.
    """
    reading = _reading
    if reading is None:
        raise IdsUnavailable("PostgreSQL's clock, by which ids are minted, has not been read yet.")
    if reading.is_contradicted():
        raise IdsUnavailable(
            "The clock of this host was set, or the host was suspended, since PostgreSQL's clock was read."
        )
    if reading.doubt_ms() > MAX_DOUBT_MS:
        raise IdsUnavailable(
            "PostgreSQL's clock was read too long ago, or took too long to read, to mint ids by it."
        )
    return reading.now_ms()


def now() -> datetime:
    """Return `now_ms` as a time in UTC."""
    return datetime.fromtimestamp(now_ms() / 1000, UTC)


def forget() -> None:
    """Forget the reading, as a process that has just started has none."""
    global _reading
    _reading = None


def host_ms() -> int:
    """Return milliseconds since the Unix epoch by this host's clock, which anyone may set."""
    return time.time_ns() // NS_PER_MS


def _best_reading() -> Reading:
    connection.ensure_connection()  # connecting is not to count
    reading = _read()
    for _ in range(READINGS - 1):
        if reading.round_trip_ms > MAX_ROUND_TRIP_MS:
            reading = min(reading, _read(), key=Reading.doubt_ms)
    return reading


def _read() -> Reading:
    started = _counted_ns()
    [(database_ms,)] = fetch(_READ, [])
    ended = _counted_ns()
    # PostgreSQL looked at its clock somewhere in between.
    middle = (started + ended) // 2
    host_at_middle = (time.time_ns() - (ended - middle)) // NS_PER_MS
    return Reading(database_ms, middle, host_at_middle, (ended - started) / NS_PER_MS)


def _counted_ns() -> int:
    """Return a count of nanoseconds that nobody can set; on Linux it goes on while the host is
    suspended.

    Of Linux's clocks a time service makes all but the raw one go up to a tenth faster or slower
    while it puts them right; and the raw one stands still while the host is suspended.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return time.monotonic_ns()
    counted = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    # In this order: whatever comes between the three, the sum is a moment from the first to the
    # last of them.
    awake = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return counted + time.clock_gettime_ns(time.CLOCK_BOOTTIME) - awake
