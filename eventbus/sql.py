"""Asking PostgreSQL in SQL where the ORM has no words for it."""

from typing import Any

from django.db import connection


def fetch(statement: str, values: Any) -> list[tuple[Any, ...]]:
    """Return all rows of `statement`. Raises `DatabaseError`."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
