"""How many connections to PostgreSQL a process may use at once: one for each of its threads that
ask it anything.

Each gives its connection back when it has its answer, so an idle process holds none.
`docs/scaling.md` has the same sums, and a test sees to it that they are the same, and that no other
thread takes one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from feedsite.front.limits import ADMIN, OVER_ALL, READS, WRITES, thread_counts

# Beside the threads that answer requests.
API_KEEPERS = ("cache-era", "live", "snowflake-lease", "watch-postgresql")
# Beside the lanes: the consumer's own thread, which asks between batches, and those in the
# background.
WORKER_THREADS = ("MainThread", "heartbeat", "watch-postgresql")
FANOUT_THREADS = (*WORKER_THREADS, "housekeeping", "partitions")
DLQ_THREADS = (*WORKER_THREADS, "dlq_size")
DLQ_LANES = 1


class Need(NamedTuple):
    """The connections that a process may use at once, and the setting that they follow from, if
    there is one.
    """

    connections: int
    setting: str = ""


def of_api(blocking_threads: int, *, has_cells: bool = False) -> int:
    """Return the connections of one process of the API to PostgreSQL, to that of each cell if it
    has several.

    Threads for what is local, such as `/docs/`, need none.
    """
    counts = thread_counts(blocking_threads)
    # An Idempotency-Key of a reader who moves between cells is reserved in both.
    of_others = counts[OVER_ALL] + counts[WRITES] if has_cells else 0
    return counts[READS] + counts[WRITES] + of_others + counts[ADMIN] + len(API_KEEPERS)


def of_fanout(lanes: int) -> int:
    """Return the connections of a `run_fanout`."""
    return lanes + len(FANOUT_THREADS)


def of_dlq() -> int:
    """Return the connections of a `run_dlq`."""
    return DLQ_LANES + len(DLQ_THREADS)


def needs(values: Mapping[str, Any], *, has_cells: bool) -> dict[str, Need]:
    """Return what each kind of process needs under these settings; any other command needs one
    connection.
    """
    return {
        "api": Need(of_api(values["BLOCKING_THREADS"], has_cells=has_cells), "BLOCKING_THREADS"),
        "run_fanout": Need(of_fanout(values["FEED_FANOUT_LANES"]), "FEED_FANOUT_LANES"),
        "run_dlq": Need(of_dlq()),
    }


def most(values: Mapping[str, Any], *, has_cells: bool) -> int:
    """Return a number that is enough for a process of any kind."""
    return max(need.connections for need in needs(values, has_cells=has_cells).values())
