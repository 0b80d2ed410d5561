"""Asking PostgreSQL in SQL where the ORM has no words for it."""

from collections.abc import Iterable
from typing import Any

from eventbus.database.current import connection


def execute(statement: str, values: Any = None) -> int:
    """Run `statement`; return how many rows it has changed or found. Raises `DatabaseError`.

    Without `values` there are no placeholders: a `%` in it stands for itself, and there may be
    several statements.
    """
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.rowcount)


def fetch(statement: str, values: Any = None) -> list[tuple[Any, ...]]:
    """Return all rows of `statement`; without `values` as `execute` does.

    Raises `DatabaseError`.
    """
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def bigints(numbers: Iterable[int]) -> str:
    """Return an array literal, as for `%s::bigint[]`; of a list, psycopg looks into each item for
    what to quote.
    """
    return "{" + ",".join(map(str, numbers)) + "}"


def as_bytes(value: memoryview | bytes | None) -> bytes | None:
    """Return the bytes of a `bytea` column, which Django's fields give as a view of memory."""
    return None if value is None else bytes(value)
