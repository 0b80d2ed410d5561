"""Partitions of `feed_entries` as a benchmark needs them."""

from collections.abc import Iterable
from itertools import pairwise

from benchmarks import database
from feeds import partitions

HOUR_MS = 3_600_000


def lay_out(starts: Iterable[int] = (), hours: Iterable[int] = range(1, 5)) -> None:
    """Replace all partitions by empty ones that start at 0 and at `starts`; then they end at these
    hours from now.
    """
    now_ms = partitions.layout().now_ms
    for partition in partitions.partitions():
        database.execute(f"DROP TABLE {partition.name}")
    bounds = [0, *starts, *(partitions.first_id_of(now_ms + hour * HOUR_MS) for hour in hours)]
    for number, (start, end) in enumerate(pairwise(bounds), 1):
        partitions.make(f"feed_entries_{number}", start, end)
    database.execute("DELETE FROM feed_horizon")
