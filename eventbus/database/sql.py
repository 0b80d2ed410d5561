"""Asking PostgreSQL in SQL where the ORM has no words for it."""

from collections.abc import Iterable
from typing import Any

from django.db import connection


def fetch(statement: str, values: Any) -> list[tuple[Any, ...]]:
    """Return all rows of `statement`. Raises `DatabaseError`."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def bigints(numbers: Iterable[int]) -> str:
    """Return an array literal, as for `%s::bigint[]`; of a list, psycopg looks into each item for what to quote."""
    return "{" + ",".join(map(str, numbers)) + "}"
