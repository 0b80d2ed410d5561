"""The hot queries on tables large enough to matter: each uses its index and reads no more than it shows."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from eventbus.envelope import Event
from eventbus.models import ProcessedEvent
from feeds import fanout, follows, housekeeping, rebuild, timeline
from feeds.models import Feed, FeedEntry, Follow
from posts.models import Post
from posts.pagination import START, Position
from tests.factories import PostCreatedFactory, PostDeletedFactory, UserFollowedFactory

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


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


def plans_of(act: Any) -> list[dict[str, Any]]:
    """Do `act` and return the plan of each of its queries, with what really happened."""
    with transaction.atomic(), CaptureQueriesContext(connection) as captured:
        act()
        transaction.set_rollback(True)
    plans = []
    with connection.cursor() as cursor:
        for query in captured.captured_queries:
            if query["sql"].lstrip().split()[0] in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"):
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


def test_a_link_to_newer_posts_stops_at_the_first_author_who_has_one(large_tables: None) -> None:
    [plan] = plans_of(lambda: timeline.Reader(9000).any_beyond(Position(1_000, newer=True)))
    assert [node["Actual Loops"] for node in nodes(plan) if node.get("Relation Name") == "posts"] == [1]


def test_what_is_beyond_a_position_is_told_in_both_directions(large_tables: None) -> None:
    Feed.objects.filter(user_id=9000).update(floor=200_000)
    reader = timeline.Reader(9000)
    newest, oldest = reader.read(START, 1)[0].id, reader.read(Position(0, newer=True), 1)[0].id
    assert not reader.any_beyond(Position(newest, newer=True))
    assert reader.any_beyond(Position(newest - 1, newer=True))
    assert not reader.any_beyond(Position(oldest - 1, newer=False))
    assert reader.any_beyond(Position(oldest, newer=False))


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


# A reader of very many, among very many posts -----------------------------------------------------------------

BUSY, FOLLOWED, PULLED = 9_001, 5_000, 50  # the reader, how many are followed, and of how many posts are pulled
CAP = 800
LIMIT = 21

FILL_BUSY = """
INSERT INTO posts (id, author_id, content, created_at, fanout)
    SELECT n, n % 5000 + 1, 'post ' || n, now(), (n % 5000 < 50)::int FROM generate_series(1, 200000) AS n;
INSERT INTO follows (follower_id, followee_id, event_id) SELECT 9001, n, 1 FROM generate_series(1, 5000) AS n;
INSERT INTO follows (follower_id, followee_id, idle, event_id)
    SELECT 10000 + n, n % 100 + 1, n > 2000, 1 FROM generate_series(1, 100000) AS n;
INSERT INTO feeds (user_id, pulled_since) SELECT n, CASE WHEN n <= 50 THEN now() END FROM generate_series(1, 9001) AS n;
INSERT INTO feeds (user_id, idle, floor)
    SELECT 10000 + n, n > 2000, CASE WHEN n > 2000 THEN 9223372036854775807 ELSE 0 END
    FROM generate_series(1, 100000) AS n;
INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT n % 5000 + 1, n, n % 5000 + 1 FROM generate_series(1, 200000) AS n;
INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT 9001, id, author_id FROM posts WHERE fanout = 0 ORDER BY id DESC LIMIT 800;
UPDATE feeds SET floor = (SELECT min(post_id) - 1 FROM feed_entries WHERE user_id = 9001) WHERE user_id = 9001;
ANALYZE posts, follows, feeds, feed_entries;
"""


@pytest.fixture
def busy_reader(db: None) -> int:
    """Fill the tables; return the floor of the busy reader's feed."""
    with connection.cursor() as cursor:
        cursor.execute(FILL_BUSY)
    return Feed.objects.get(user_id=BUSY).floor


def rows_read(act: Any) -> Counter[str]:
    """Return how many rows of each table the queries of `act` really read, whatever they made of them.

    No table of those that grow may be read whole.
    """
    found: Counter[str] = Counter()
    for plan in plans_of(act):
        for node in nodes(plan):
            if "Relation Name" in node and node["Node Type"] not in ("ModifyTable", "Bitmap Index Scan"):
                assert node["Node Type"] != "Seq Scan", node
                rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                found[node["Relation Name"]] += round(rows * node["Actual Loops"])
    return found


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


PLACES: dict[str, Callable[[int], Position]] = {
    "first page": lambda floor: START,
    "above the floor": lambda floor: Position(floor + 400, newer=False),
    "across the floor": lambda floor: Position(floor + 10, newer=False),
    "below the floor": lambda floor: Position(floor - 1, newer=False),
    "far below the floor": lambda floor: Position(20_000, newer=False),
    "the very end": lambda floor: Position(5, newer=False),
    "newer, above the floor": lambda floor: Position(floor + 400, newer=True),
    "newer, across the floor": lambda floor: Position(floor - 10, newer=True),
    "newer, far below the floor": lambda floor: Position(20_000, newer=True),
    "newer, at the top": lambda floor: Position(199_995, newer=True),
}


def test_a_page_of_a_reader_of_5000_costs_a_look_up_each_at_most(busy_reader: int) -> None:
    for place, position in PLACES.items():
        read = rows_read(lambda: timeline.read(BUSY, position(busy_reader), LIMIT))  # noqa: B023 - called at once
        below = "above" not in place and place not in ("first page", "newer, at the top")
        # The entries above the floor; the pulled authors by their index, each found in the follows.
        assert read["feed_entries"] <= CAP, place
        assert read["feeds"] <= 1 + PULLED, place
        assert read["follows"] <= PULLED + FOLLOWED * below, place
        # The page; of each author the nearest post, and of the nearest authors what fits the page.
        assert read["posts"] <= 5 * LIMIT + PULLED + (FOLLOWED + 2 * LIMIT) * below, (place, read)


def test_the_fan_out_reads_no_follower_who_rests(busy_reader: int) -> None:
    author = 57
    followers = Follow.objects.filter(followee_id=author, idle=False).count()
    assert Follow.objects.filter(followee_id=author).count() > 10 * followers
    post = PostCreatedFactory(author_id=author, post_id=300_000)
    read = rows_read(lambda: fanout.deliver([post], careful=True))
    assert read["follows"] == followers
    part = rows_read(lambda: fanout.deliver_part(post, 0))
    assert part["follows"] == followers
    withdrawn = rows_read(lambda: fanout.withdraw([PostDeletedFactory(author_id=author, post_id=300_000)]))
    assert withdrawn["follows"] == followers
    assert withdrawn["feed_entries"] <= followers + 1


def test_a_rebuild_reads_a_look_up_for_each_author_and_what_fits_the_feed(busy_reader: int) -> None:
    read = rows_read(lambda: rebuild._fill(BUSY))
    assert FeedEntry.objects.filter(user_id=BUSY).count() == CAP
    assert read["follows"] <= FOLLOWED
    assert read["posts"] <= FOLLOWED + 4 * CAP
    assert read["feed_entries"] <= 2 * CAP


def test_a_step_of_the_walk_reads_only_its_feeds_and_what_it_drops(busy_reader: int) -> None:
    users = list(range(8_950, 9_002))
    FeedEntry.objects.bulk_create(FeedEntry(user_id=BUSY, post_id=n, author_id=1) for n in range(1, 301))  # garbage
    Feed.objects.filter(user_id=8_960).update(last_read_at="2025-01-01T00:00:00Z")
    read = rows_read(lambda: housekeeping.tidy(users))
    assert FeedEntry.objects.filter(user_id=BUSY).count() == CAP
    assert Feed.objects.get(user_id=8_960).idle
    assert read["feeds"] <= 5 * len(users)
    assert read["feed_entries"] <= CAP + 3 * 300
    assert read["follows"] <= len(users)
    assert rows_read(lambda: housekeeping._lock_next(5_000))["feeds"] == housekeeping.USERS_A_STEP


def test_the_queue_of_rebuilds_is_an_index_of_its_own(busy_reader: int) -> None:
    Feed.objects.filter(user_id__in=[77, BUSY]).update(rebuild_wanted=True)
    wanted = Feed.objects.filter(rebuild_wanted=True).values_list("user_id", flat=True)
    assert rows_read(lambda: list(wanted[: housekeeping.REBUILDS_A_ROUND]))["feeds"] <= 3
