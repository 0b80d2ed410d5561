"""How many threads a process of the API has for Django's answers, and what they wait for.

How many connections to PostgreSQL that means is in `feedsite.connections`.
"""

READS, WRITES, ADMIN, LOCAL = "reads", "writes", "admin", "local"
OVER_ALL = "over-all-cells"


def thread_counts(blocking_threads: int) -> dict[str, int]:
    """Return the threads of each kind for `BLOCKING_THREADS`.

    Reads wait for PostgreSQL; writes for Kafka, and those with an Idempotency-Key for PostgreSQL
    too: of both each cell has so many. Pages of the admin wait for PostgreSQL, and what is made of
    several cells for that of each; what is local, such as the documentation, waits for nobody.
    """
    return {
        READS: blocking_threads,
        WRITES: max(1, blocking_threads // 2),
        OVER_ALL: 2,
        ADMIN: 2,
        LOCAL: 2,
    }
