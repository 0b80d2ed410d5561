"""How `feed_entries` is laid out in a test, and afterwards as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

from feeds.partitions import partitions

_ONE_PARTITION = """
TRUNCATE feed_entries;
ALTER TABLE feed_entries DETACH PARTITION feed_entries_1;
ALTER TABLE feed_entries ATTACH PARTITION feed_entries_1 FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
"""


@contextmanager
def partitions_undone() -> Iterator[None]:
    """Leave one empty partition of all ids at the end."""
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            for partition in partitions()[1:]:
                cursor.execute(f"DROP TABLE {partition.name}")
            cursor.execute(_ONE_PARTITION)


def rows_by_partition() -> dict[str, int]:
    """Return how many entries each partition has, of those that have any."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text, count(*) FROM feed_entries GROUP BY 1 ORDER BY 1")
        return dict(cursor.fetchall())


def vacuum() -> None:
    """Give back the room of deleted entries, as autovacuum does in time."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM feed_entries")
