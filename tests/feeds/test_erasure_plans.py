"""The parts of an erasure on large tables: each finds what it needs by an index, without statistics."""

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_django import DjangoDbBlocker

from eventbus.database.sql import execute
from eventbus.models import Erasure
from feeds import erasure
from tests.factories import (
    PostCreatedFactory,
    UserBlockedFactory,
    UserErasedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    apply,
)
from tests.large_tables import FILL, filled, plans_of, scans

pytestmark = pytest.mark.django_db

USER = 77
MORE = """
INSERT INTO follows (follower_id, followee_id, event_id, active)
    SELECT n + 10000, n % 1999 + 1, 1, false FROM generate_series(1, 50000) AS n;
INSERT INTO mutes (user_id, muted_id, active, event_id)
    SELECT n % 4999 + 1, n % 5003 + 1, true, 1 FROM generate_series(1, 50000) AS n
    WHERE n % 4999 <> n % 5003 ON CONFLICT DO NOTHING;
INSERT INTO waiting_edits (event_id, post_id, author_id, content, changes_data)
    SELECT n, n, n % 5000 + 1, 'early', false FROM generate_series(1, 50000) AS n;
INSERT INTO idempotency_keys (user_id, key, fingerprint, event_id, object_id)
    SELECT n % 5000 + 1, n, '', 1, 1 FROM generate_series(1, 50000) AS n;
INSERT INTO erasures (user_id, event_id, step, finished_at)
    SELECT n, n, 'feed', now() FROM generate_series(100000, 150000) AS n;
"""

EMPTY_BY_STATISTICS = """
SELECT pg_restore_relation_stats(
    'schemaname', current_schema()::text, 'relname', %s, 'relpages', 1000, 'reltuples', 0::real
)
"""


@pytest.fixture(scope="module")
def large_tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with filled(django_db_blocker, FILL.replace("ANALYZE", "-- ") + MORE):
        yield
        with django_db_blocker.unblock():
            execute("TRUNCATE mutes, waiting_edits, idempotency_keys, erasures")


@pytest.mark.parametrize("step", list(erasure.STEPS))
def test_each_step_finds_its_rows_by_an_index(large_tables: None, step: str) -> None:
    apply(UserErasedFactory(user_id=USER))
    place = erasure.Place(USER, Erasure.objects.get(user_id=USER).event_id, step, 0)
    if step == "processed events":
        return  # walks over its primary key
    seen = [scan for plan in plans_of(lambda: erasure.STEPS[step](place)) for scan in scans(plan)]
    # `feeds` has but 5,000 rows here, less than a hundred look-ups cost.
    large = (
        "posts",
        "waiting_edits",
        "follows",
        "feed_entries",
        "mutes",
        "idempotency_keys",
    )
    assert [scan for scan in seen if scan[0] == "Seq Scan" and scan[1] in large] == []
    if step not in ("withdrawals", "writers", "dead letters", "feed"):
        assert {table for _, table in seen} & set(large)


def test_blocks_are_looked_up_by_their_keys_where_statistics_take_the_tables_to_be_empty(
    large_tables: None,
) -> None:
    # As when they were made while an import was under way.
    for table in ("follows", "blocks"):
        execute(EMPTY_BY_STATISTICS, [table])
    execute("SET LOCAL statement_timeout = '20s'")
    blocked = [UserBlockedFactory(blocker_id=USER, blocked_id=n) for n in range(1_000, 1_040)]
    plans = plans_of(lambda: apply(*blocked))
    updates = [plan for plan in plans if plan.get("Relation Name") == "follows"]
    assert updates
    assert not [scan for plan in updates for scan in scans(plan) if scan[0] == "Seq Scan"]


def test_the_guards_look_each_user_up(large_tables: None) -> None:
    def act() -> Any:
        apply(*[PostCreatedFactory(author_id=user) for user in range(1, 30)])
        apply(UserFollowedFactory(follower_id=3, followee_id=4))
        apply(UserMutedFactory(user_id=3, muted_id=4))

    seen = [scan for plan in plans_of(act) for scan in scans(plan)]
    assert ("Seq Scan", "erasures") not in seen
    assert "erasures" in {table for _, table in seen}
    assert erasure._claim() is None


def test_the_next_erasure_is_found_among_many_that_are_finished(large_tables: None) -> None:
    apply(UserErasedFactory(user_id=USER))
    seen = [
        scan
        for act in (erasure._claim, erasure.oldest_seconds)
        for plan in plans_of(act)
        for scan in scans(plan)
    ]
    assert ("Seq Scan", "erasures") not in seen
