"""Advisory locks that order everything about one key, whichever partition or worker it comes
through.

Kafka orders events of a key only within one partition and one living worker. A partition count that
grew, a replay or a frozen worker that wakes up breaks that order; the lock, held to the end of the
transaction, does not.
"""

import time
from collections.abc import Iterable

from eventbus.database.sql import bigints, execute, fetch

# PostgreSQL keeps one-argument and two-argument advisory locks apart, so no user id meets this
# number.
BULK_LOAD = 1
_KEYS = """
SELECT pg_advisory_xact_lock(key) FROM (SELECT DISTINCT unnest(%s::bigint[]) AS key ORDER BY 1) AS keys
"""
# In the same round trip: what workers and housekeepers ask for, they ask for by a key. So a table that
# has an index for it is never read whole, though statistics take it for empty, or for the rows of a
# few users, as they may for minutes while it fills.
_BULK_SHARED = """
SELECT pg_advisory_xact_lock_shared(0, %s), set_config('enable_seqscan', 'off', true)
"""
_BULK_EXCLUSIVE = "SELECT pg_advisory_xact_lock(0, %s)"
# Who holds the shared lock is a worker, importing or repairing nothing.
_WORKERS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'advisory' AND classid = 0 AND objid = %s AND objsubid = 2 AND mode = 'ShareLock' AND granted
  AND pid <> pg_backend_pid() AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
WAIT_STEP_SECONDS = 0.005


def acquire_keys(keys: Iterable[int]) -> None:
    """Hold the lock of each key until the transaction ends; in ascending order, so workers cannot
    deadlock.
    """
    join_workers()
    execute(_KEYS, [bigints(keys)])


def join_workers() -> None:
    """Keep imports and repairs out until the transaction ends, as `acquire_keys` does too, and have
    it find rows by indexes.
    """
    execute(_BULK_SHARED, [BULK_LOAD])


def wait_for_workers() -> None:
    """Return when every worker's transaction that is open now has ended. Keeps nobody out."""
    waited_for = _open_transactions()
    while waited_for:
        time.sleep(WAIT_STEP_SECONDS)
        waited_for &= _open_transactions()


def _open_transactions() -> set[str]:
    return {transaction for (transaction,) in fetch(_WORKERS, [BULK_LOAD])}


def acquire_bulk_load() -> None:
    """Keep every worker out until the transaction ends: for imports and repairs that change many
    keys at once.
    """
    execute(_BULK_EXCLUSIVE, [BULK_LOAD])
