"""What moves readers, on large tables: each part finds what it needs by an index, whatever statistics
say.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoDbBlocker

from eventbus import cellmap, cells
from eventbus.cells import Cell
from eventbus.database.sql import execute, fetch
from eventbus.ids import idempotency
from eventbus.ids.idempotency import KeptKey
from feeds.growing import keys, leftovers, standing
from tests.large_tables import FILL, filled, plans_of, scans

pytestmark = pytest.mark.django_db

MORE = """
INSERT INTO idempotency_keys (user_id, key, fingerprint, event_id, object_id)
    SELECT n % 5000 + 1, n, '', 1, 1 FROM generate_series(1, 50000) AS n;
"""
TABLES = ("follows", "feed_entries", "mutes", "blocks", "idempotency_keys", "posts")
PARTITIONS = (
    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'feed_entries'::regclass"
)
TELL = """
SELECT pg_restore_relation_stats(
    'schemaname', current_schema()::text, 'relname', %s, 'relpages', %s, 'reltuples', %s::real
)
"""
ADDRESS = {"database": "postgresql://127.0.0.1/none", "redis": "redis://127.0.0.1"}
TWO = json.dumps(
    {"ids": "a", "cells": {"a": {**ADDRESS, "slots": "0-511"}, "b": {
        "database": "postgresql://127.0.0.1/another", "redis": "redis://127.0.0.1:6380", "slots": "512-1023"}}}
)  # fmt: skip


@pytest.fixture(scope="module")
def large_tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with filled(django_db_blocker, FILL.replace("ANALYZE", "-- ") + MORE):
        yield
        with django_db_blocker.unblock():
            execute("TRUNCATE mutes, idempotency_keys")


@pytest.fixture(params=["none", "empty", "huge"])
def statistics(large_tables: None, request: pytest.FixtureRequest) -> None:
    """Have the statistics be none, from when the tables were empty, or of 10^9 rows."""
    if request.param == "none":
        return
    pages, rows = {"empty": (1_000, 0.0), "huge": (10_000_000, 1e9)}[request.param]
    for table in (*TABLES, *(partition for (partition,) in fetch(PARTITIONS))):
        execute(TELL, [table, pages, rows])


@pytest.fixture
def cell() -> Iterator[Cell]:
    cells.use(cellmap.read(TWO), "a")
    yield cells.own()
    cells.use(cellmap.ONE_CELL, cells.NO_CELL)


def strangers(cell: Cell) -> list[int]:
    return next(leftovers._parts(cell))


def delete_follows(users: list[int]) -> None:
    leftovers._put_to_rest(users)
    leftovers._delete_follows(users)


PARTS: dict[str, Callable[[Cell], Any]] = {
    "find users": strangers,
    "put to rest": lambda cell: leftovers._put_to_rest(strangers(cell)),
    "follows": lambda cell: delete_follows(strangers(cell)[:20]),
    "entries": lambda cell: leftovers._delete_entries(strangers(cell)),
    "others": lambda cell: leftovers._delete_others(strangers(cell)),
    "count": lambda cell: [
        fetch(statement, [strangers(cell)]) for statement in leftovers._COUNTS.values()
    ],
    "find keys": lambda cell: next(keys._parts(cell)),
    "delete keys": lambda cell: execute(keys._DELETE, [[1, 2], ["1", "2"]]),
    "take keys": lambda cell: idempotency.take_over(
        cell, [KeptKey(user, "k", "", 1, 1, timezone.now()) for user in range(1, 500)]
    ),
    "look up": lambda cell: standing._require_rows(
        cell, standing._some_follows(cell, cell.slots), standing._some_posts(cell)
    ),
    "newest events": standing._newest_events,
}


@pytest.mark.parametrize("part", list(PARTS))
def test_each_part_finds_its_rows_by_an_index(statistics: None, cell: Cell, part: str) -> None:
    execute("SET LOCAL statement_timeout = '20s'")
    seen = [scan for plan in plans_of(lambda: PARTS[part](cell)) for scan in scans(plan)]
    assert seen
    assert [scan for scan in seen if scan[0] == "Seq Scan" and scan[1] in TABLES] == []
