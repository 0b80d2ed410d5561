"""Which PostgreSQL, and which Redis, is asked: those of the cell that the caller is on.

The one place where a connection is chosen. With one cell it is always the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django_redis import get_redis_connection
from redis import Redis

from eventbus import cells
from eventbus.cells import Cell
from eventbus.database.deadline import answer_within


class _Connection:
    """This thread's connection to PostgreSQL, as Django's `connection` is that of one server."""

    def __getattr__(self, name: str) -> Any:
        return getattr(connections[cells.alias()], name)


connection = cast(BaseDatabaseWrapper, _Connection())


@contextmanager
def atomic(*, durable: bool = False) -> Iterator[None]:
    """Run a transaction, or a part of one that can be undone alone, as Django's `atomic` does.

    A decorator too: `@atomic()`.
    """
    with transaction.atomic(using=cells.alias(), durable=durable):
        yield


@contextmanager
def asking(cell: Cell, seconds: float) -> Iterator[None]:
    """Be on a cell for a short question, which fails with `DatabaseError` once `seconds` have
    passed; then give its connection back.
    """
    try:
        with cells.on(cell), answer_within(seconds):
            yield
    finally:
        connections[cell.alias].close()


def redis() -> "Redis":
    """Return the client of the cell's Redis."""
    client: Redis = get_redis_connection(cells.alias())
    return client
