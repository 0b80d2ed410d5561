"""What PostgreSQL may plan in a transaction, where what it knows of the tables may be wrong.

Workers need none of it: `eventbus.database.locks` has their transactions find rows by an index.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from eventbus.database.current import atomic
from eventbus.database.sql import execute


@contextmanager
def by_index() -> Iterator[None]:
    """Run a transaction whose statements find rows by an index.

    Without statistics PostgreSQL takes each user for half a percent of a table, and a part's users
    for half of it.
    """
    with atomic():
        execute("SET LOCAL enable_seqscan = off")
        yield


def without_loops() -> None:
    """Have the rest of the transaction go through each table once, when it joins millions of rows.

    Where statistics take one side for so small that going through it for each row of the other
    seems to cost nothing, that would never end.
    """
    execute("SET LOCAL enable_nestloop = off")
