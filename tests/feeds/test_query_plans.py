"""The hot queries on tables large enough to matter: each uses its index and reads no more than it shows."""

import json
from typing import Any

import pytest
from django.db import connection, reset_queries
from django.test.utils import CaptureQueriesContext

from eventbus.envelope import Event
from eventbus.models import ProcessedEvent
from feeds import fanout, follows, timeline
from feeds.models import Feed, Follow
from posts.models import Post
from posts.pagination import START
from tests.factories import PostCreatedFactory, UserFollowedFactory

pytestmark = pytest.mark.django_db

FILL = """
INSERT INTO posts (id, author_id, content, created_at)
    SELECT n, n % 2000 + 1, 'post ' || n, now() FROM generate_series(1, 200000) AS n;
INSERT INTO follows (follower_id, followee_id, event_id)
    SELECT n % 5000 + 1, n % 1999 + 1, 1 FROM generate_series(1, 100000) AS n
    WHERE n % 5000 <> n % 1999 ON CONFLICT DO NOTHING;
INSERT INTO follows (follower_id, followee_id, event_id)
    SELECT 9000, n, 1 FROM generate_series(1, 1000) AS n;
INSERT INTO feeds (user_id) SELECT generate_series(1, 5000) UNION SELECT 9000;
INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT n % 5000 + 1, n, n % 2000 + 1 FROM generate_series(1, 200000) AS n;
INSERT INTO processed_events (event_id, type) SELECT n, 'post.created' FROM generate_series(1, 100000) AS n;
ANALYZE posts, follows, feeds, feed_entries, processed_events;
"""


@pytest.fixture
def large_tables(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(FILL)


def scans(node: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (kind, table) of every scan in a plan."""
    found = [(node["Node Type"], node["Relation Name"])] if "Relation Name" in node else []
    return found + [scan for child in node.get("Plans", []) for scan in scans(child)]


def plans_of(act: Any) -> list[dict[str, Any]]:
    """Run `act` and return the plan of each of its queries, with what really happened."""
    reset_queries()
    with CaptureQueriesContext(
        connection,
    ) as captured:
        act()
    plans = []
    with connection.cursor() as cursor:
        for query in captured.captured_queries:
            if query["sql"].lstrip().split()[0] in ("SELECT", "WITH"):
                cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query["sql"].replace("%", "%%"))
                answer = cursor.fetchone()[0]
                plans.append((json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"])
    return plans


def assert_no_full_scan(act: Any, *tables: str, queries: int = 1) -> None:
    plans = plans_of(act)
    assert len(plans) == queries
    seen = [scan for plan in plans for scan in scans(plan)]
    assert {table for _, table in seen} >= set(tables)
    full = [scan for scan in seen if scan[0] == "Seq Scan" and scan[1] in tables]
    assert full == [], seen


def test_the_first_page_reads_entries_and_posts_by_their_keys(large_tables: None) -> None:
    assert_no_full_scan(lambda: timeline.read(77, START, 21), "feed_entries", "posts", "feeds", queries=2)


def test_below_the_floor_each_followed_author_costs_one_look_up(large_tables: None) -> None:
    Feed.objects.filter(user_id=9000).update(floor=200_000)
    assert_no_full_scan(lambda: timeline.read(9000, START, 21), "posts", "follows", queries=3)


def test_lists_read_only_their_page(large_tables: None) -> None:
    assert_no_full_scan(lambda: Post.objects.page_of(7, START, 21), "posts")
    assert_no_full_scan(lambda: Follow.objects.followers_page(7, START, 21), "follows")
    assert_no_full_scan(lambda: Follow.objects.following_page(9000, START, 21), "follows")


def test_followers_are_counted_by_one_look_up(large_tables: None) -> None:
    assert_no_full_scan(lambda: fanout.follower_counts([7, 8, 9]), "feeds")


def test_the_audience_comes_from_the_index_of_followees(large_tables: None) -> None:
    assert_no_full_scan(lambda: list(follows.audience({7})), "follows")


def test_processed_events_are_looked_up_by_their_key(large_tables: None) -> None:
    events: list[Event] = [PostCreatedFactory().to_event() for _ in range(100)]
    assert_no_full_scan(lambda: ProcessedEvent.objects.ids_among(events), "processed_events")


def test_a_follow_costs_the_same_queries_for_any_number_of_pairs(
    large_tables: None, django_assert_num_queries: Any
) -> None:
    facts = [UserFollowedFactory(follower_id=9000, followee_id=followee) for followee in range(1001, 1051)]
    with django_assert_num_queries(4):  # active before, write, count, back-fill
        follows.follow(facts)
