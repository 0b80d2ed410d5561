"""`feed_entries` by age: when the newest partition is full, a newer one is started.

Posts arrive in about the order of their ids, so nearly all rows go into the newest partition, and what a row costs
depends on the size of its index, not of all that was ever written. A read asks the newest partition first and stops
when its page is full. PostgreSQL sends every row where it belongs; nothing else knows of partitions.

The number of partitions is bounded too: the housekeeper raises floors above those that are too old
(`feeds.housekeeping.tidy`), and one in which nothing is left is dropped.
"""

from collections.abc import Iterable
from typing import NamedTuple

import structlog
from django import db
from django.conf import settings
from django.db import connection, transaction

from eventbus import locks, metrics
from eventbus.background import Repeating
from eventbus.sql import fetch

CHECK_SECONDS = 2.0
# After a failure: each try keeps readers waiting for up to `LOCK_PATIENCE`.
RETRY_SECONDS = 60.0
LOCK_PATIENCE = "500ms"
# After that PostgreSQL ends the transaction of a process that freezes while everybody waits for it.
IDLE_PATIENCE = "2s"
ROWS_A_PAGE = 157  # of 8 kB, when it is full

# Of a partition that is dropped at this moment PostgreSQL knows neither bounds nor size.
_ALL = """
SELECT relname, bound[1], bound[2], pages * %s FROM (
    SELECT
        relname, regexp_match(pg_get_expr(relpartbound, pg_class.oid), 'FROM \\((.+)\\) TO \\((.+)\\)') AS bound,
        pg_relation_size(pg_class.oid) / current_setting('block_size')::int AS pages
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'feed_entries'::regclass
) AS partitions
WHERE bound IS NOT NULL AND pages IS NOT NULL
"""

_START_NEXT = """
ALTER TABLE feed_entries DETACH PARTITION {newest};
ALTER TABLE feed_entries ATTACH PARTITION {newest} FOR VALUES FROM ({start}) TO ({boundary});
CREATE TABLE {next} PARTITION OF feed_entries FOR VALUES FROM ({boundary}) TO (MAXVALUE) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
)
"""

_DROP = """
ALTER TABLE feed_entries DETACH PARTITION {emptied};
DROP TABLE {emptied};
ALTER TABLE feed_entries DETACH PARTITION {older};
ALTER TABLE feed_entries ATTACH PARTITION {older} FOR VALUES FROM ({start}) TO ({end})
"""

log = structlog.get_logger(__name__)


class Partition(NamedTuple):
    """The entries of the posts with ids from `start` to below `end`; None is the end of all ids on that side."""

    name: str
    start: int | None
    end: int | None
    rows: int  # about, with those that are deleted and whose room was not given back


def keeper() -> Repeating:
    """Return the context in which partitions are started and dropped as needed; failures are logged."""
    return Repeating("partitions", _keep_up, pause=CHECK_SECONDS)


def keep_up() -> None:
    """Start a partition if the newest is full, or drop one that is no longer needed. Raises `DatabaseError`.

    Both lock the table for a moment, some 50 ms for each million rows of the partition that gets a new end.
    """
    found = partitions()
    _tell(found)
    if found[-1].rows >= settings.FEED_PARTITION_ROWS:
        start_next(settings.FEED_PARTITION_ROWS)
    elif _droppable(found):
        drop_emptied()


def partitions() -> list[Partition]:
    """Return the partitions, oldest first."""
    found = [Partition(name, _id(start), _id(end), rows) for name, start, end, rows in fetch(_ALL, [ROWS_A_PAGE])]
    return sorted(found, key=lambda partition: partition.start or 0)


def oldest_kept() -> int:
    """Return the id up to which nothing is to be materialised, because it would be in a partition that is too old."""
    found = partitions()
    start = found[-settings.FEED_PARTITIONS].start if len(found) > settings.FEED_PARTITIONS else None
    return start - 1 if start else 0


@transaction.atomic
def start_next(full_at: int = 1) -> str | None:
    """Have posts that are newer than all there are go into a partition of their own; return its name.

    None: somebody else is at it, or the newest partition has fewer rows than `full_at`. Raises `DatabaseError`, such as
    `OperationalError` while somebody holds the table for long.
    """
    if not locks.try_maintenance():
        return None
    newest = partitions()[-1]
    if newest.rows < full_at:
        return None
    _lock(newest.name)
    # Under the lock, so that all that was written to the partition is older.
    [(boundary,)] = fetch("SELECT coalesce(max(id), 0) + 1 FROM posts", [])
    if boundary <= (newest.start or 0):
        return None
    name = f"feed_entries_{int(newest.name.rpartition('_')[2]) + 1}"
    _execute(_START_NEXT.format(newest=newest.name, next=name, start=newest.start or "MINVALUE", boundary=boundary))
    log.info("partition_started", name=name, above=boundary - 1)
    return name


@transaction.atomic
def drop_emptied() -> str | None:
    """Drop the oldest partition that is no longer needed, to whose range the one before succeeds; return its name.

    None: somebody else is at it, or rows have come to it meanwhile. Raises `DatabaseError`.
    """
    if not locks.try_maintenance():
        return None
    found = partitions()
    droppable = _droppable(found)
    if not droppable:
        return None
    emptied = droppable[0]
    older = found[found.index(emptied) - 1]
    _lock(emptied.name, older.name)
    if fetch(f"SELECT FROM {emptied.name} LIMIT 1", []):
        return None
    _execute(_DROP.format(emptied=emptied.name, older=older.name, start=older.start or "MINVALUE", end=emptied.end))
    log.info("partition_dropped", name=emptied.name)
    return emptied.name


def _tell(found: Iterable[Partition]) -> None:
    metrics.feed_entries_partition_rows.clear()
    for partition in found:
        metrics.feed_entries_partition_rows.labels(partition.name).set(partition.rows)


def _droppable(found: list[Partition]) -> list[Partition]:
    """Return those that are too old and whose room vacuum has given back; the oldest of all stays, for any old id."""
    return [partition for partition in found[1 : -settings.FEED_PARTITIONS] if partition.rows == 0]


def _keep_up() -> float | None:
    try:
        keep_up()
    except db.Error as error:
        log.warning("partitions_not_kept", error=str(error).strip())
        return RETRY_SECONDS
    return None


def _lock(*names: str) -> None:
    """Keep everybody off the table. Whoever waits for it waits for us as well, so not for long."""
    for name in names:
        # First keep vacuum off, while nobody waits for us.
        _execute(f"LOCK TABLE ONLY {name} IN SHARE UPDATE EXCLUSIVE MODE")
    _execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'")
    _execute(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_PATIENCE}'")
    _execute("LOCK TABLE ONLY feed_entries IN ACCESS EXCLUSIVE MODE")


def _execute(statements: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statements)


def _id(bound: str) -> int | None:
    return None if bound in ("MINVALUE", "MAXVALUE") else int(bound.strip("'"))
