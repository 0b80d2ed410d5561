"""Advisory locks that order everything about one key, whichever partition or worker it comes through.

Kafka orders events of a key only within one partition and one living worker. A partition count that grew, a replay
or a frozen worker that wakes up breaks that order; the lock, held to the end of the transaction, does not.
"""

from collections.abc import Iterable

from django.db import connection

# PostgreSQL keeps one-argument and two-argument advisory locks apart, so no user id meets this number.
BULK_LOAD = 1
_KEYS = """
SELECT pg_advisory_xact_lock(key) FROM (SELECT DISTINCT unnest(%s::bigint[]) AS key ORDER BY 1) AS keys
"""
_BULK_SHARED = "SELECT pg_advisory_xact_lock_shared(0, %s)"
_BULK_EXCLUSIVE = "SELECT pg_advisory_xact_lock(0, %s)"


def acquire_keys(keys: Iterable[int]) -> None:
    """Hold the lock of each key until the transaction ends; in ascending order, so workers cannot deadlock."""
    with connection.cursor() as cursor:
        cursor.execute(_BULK_SHARED, [BULK_LOAD])
        cursor.execute(_KEYS, [list(keys)])


def acquire_bulk_load() -> None:
    """Keep every worker out until the transaction ends: for imports and repairs that change many keys at once."""
    with connection.cursor() as cursor:
        cursor.execute(_BULK_EXCLUSIVE, [BULK_LOAD])
