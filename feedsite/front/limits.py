"""How many threads a process of the API has, and so how many connections to PostgreSQL it may use at once.

`docs/scaling.md` has the same formula.
"""

READS, WRITES, ADMIN, LOCAL = "reads", "writes", "admin", "local"

# Beside the threads that answer: the keeper of the cache's era, the watch over PostgreSQL, the snowflake lease.
KEEPERS = 3


def thread_counts(blocking_threads: int) -> dict[str, int]:
    """Return the threads of each kind for `BLOCKING_THREADS`.

    Reads wait for PostgreSQL; writes for Kafka, and those with an Idempotency-Key for PostgreSQL too; pages of the
    admin for PostgreSQL; what is local, such as the documentation, waits for nobody.
    """
    return {READS: blocking_threads, WRITES: max(1, blocking_threads // 2), ADMIN: 2, LOCAL: 2}


def connections(blocking_threads: int) -> int:
    """Return how many connections to PostgreSQL a process of the API may use at once."""
    counts = thread_counts(blocking_threads)
    return counts[READS] + counts[WRITES] + counts[ADMIN] + KEEPERS
