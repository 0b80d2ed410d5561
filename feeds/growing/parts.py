"""Transactions that walk over large tables, a part at a time."""

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
