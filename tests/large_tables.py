"""Tables large enough for their indexes to matter, filled once a module, and the plans of queries
on them.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoDbBlocker

TABLES = "posts, follows, mutes, blocks, feeds, feed_entries, processed_events"

FILL = """
INSERT INTO posts (id, author_id, content, created_at)
    SELECT n, n % 2000 + 1, 'post ' || n, now() FROM generate_series(1, 200000) AS n;
INSERT INTO follows (follower_id, followee_id, event_id)
    SELECT n % 5000 + 1, n % 1999 + 1, 1 FROM generate_series(1, 100000) AS n
    WHERE n % 5000 <> n % 1999 ON CONFLICT DO NOTHING;
INSERT INTO follows (follower_id, followee_id, event_id)
    SELECT 9000, n, 1 FROM generate_series(1, 1000) AS n;
INSERT INTO mutes (user_id, muted_id, active, event_id)
    SELECT n % 5000 + 1, n % 1999 + 1, n % 2 = 0, 1 FROM generate_series(1, 100000) AS n
    WHERE n % 5000 <> n % 1999 ON CONFLICT DO NOTHING;
INSERT INTO blocks (blocker_id, blocked_id, blocked_event_id)
    SELECT n % 5000 + 1, n % 1999 + 1, n % 2 FROM generate_series(1, 100000) AS n
    WHERE n % 5000 <> n % 1999 ON CONFLICT DO NOTHING;
INSERT INTO feeds (user_id) SELECT generate_series(1, 5000) UNION SELECT 9000;
INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT n % 5000 + 1, n, n % 2000 + 1 FROM generate_series(1, 200000) AS n;
INSERT INTO processed_events (event_id, type) SELECT n, 'post.created' FROM generate_series(1, 100000) AS n;
ANALYZE posts, follows, mutes, blocks, feeds, feed_entries, processed_events;
"""


EXPLAINED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")


@contextmanager
def filled(blocker: DjangoDbBlocker, statements: str) -> Iterator[None]:
    """Fill the tables for every test of a module, each of which undoes what it changes; empty them
    afterwards.
    """
    with blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(statements)
    try:
        yield
    finally:
        with blocker.unblock():
            with connection.cursor() as cursor:
                cursor.execute(f"TRUNCATE {TABLES}")
            connection.close()


def table_of(node: dict[str, Any]) -> str | None:
    """Return the table a node of a plan is about, also when that is one of its partitions.

    None of the catalog's, nor one of a single row, nor an empty partition.
    """
    name: str | None = node.get("Relation Name")
    if name is None or name.startswith("pg_") or name == "feed_horizon":
        return None
    if name.startswith("feed_entries_") and not (
        node["Actual Rows"] or node.get("Rows Removed by Filter")
    ):
        return None
    return re.sub(r"^feed_entries_\d+$", "feed_entries", name)


def scans(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (kind, table) of every scan in a plan."""
    return [(node["Node Type"], table) for node in nodes(plan) if (table := table_of(node))]


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


def plans_of(act: Any) -> list[dict[str, Any]]:
    """Do `act` and return the plan of each of its queries, with what really happened."""
    with transaction.atomic(), CaptureQueriesContext(connection) as captured:
        act()
        transaction.set_rollback(True)
    plans = []
    with transaction.atomic(), connection.cursor() as cursor:
        for query in captured.captured_queries:
            if query["sql"].startswith("SET LOCAL"):
                cursor.execute(query["sql"])
            for statement in query["sql"].split(";"):
                if not statement.lstrip().startswith(EXPLAINED):
                    continue
                cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement.replace("%", "%%"))
                answer = cursor.fetchone()[0]
                plans.append((json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"])
        transaction.set_rollback(True)
    return plans


def assert_no_full_scan(act: Any, *tables: str, queries: int = 1) -> None:
    plans = plans_of(act)
    assert len(plans) == queries
    seen = [scan for plan in plans for scan in scans(plan)]
    assert {table for _, table in seen} >= set(tables)
    full = [scan for scan in seen if scan[0] == "Seq Scan" and scan[1] in tables]
    assert full == [], seen
