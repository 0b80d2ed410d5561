"""How `feed_entries` is laid out in a test, and afterwards as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from django.db import connection

from feeds import partitions
from feeds.models import Horizon

HOUR_MS = 3_600_000


def lay_out(*bounds: int) -> None:
    """Replace all partitions, and what is in them, by empty ones between the bounds."""
    with connection.cursor() as cursor:
        for partition in partitions.partitions():
            cursor.execute(f"DROP TABLE {partition.name}")
    for number, (start, end) in enumerate(pairwise(bounds), 1):
        partitions.make(f"feed_entries_{number}", start, end)


@contextmanager
def partitions_undone() -> Iterator[None]:
    """Leave the empty partitions of a new database at the end."""
    try:
        yield
    finally:
        now_ms = partitions.layout().now_ms
        lay_out(0, *(partitions.first_id_of(now_ms + hours * HOUR_MS) for hours in range(1, 5)))
        Horizon.objects.all().delete()


def rows_by_partition() -> dict[str, int]:
    """Return how many entries each partition has, of those that have any."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tableoid::regclass::text, count(*) FROM feed_entries GROUP BY 1 ORDER BY 1"
        )
        return dict(cursor.fetchall())
