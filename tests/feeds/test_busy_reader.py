"""A reader of 5,000 accounts among very many posts and followers: what each query really reads."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_django import DjangoDbBlocker

from feeds import fanout, housekeeping, rebuild
from feeds.models import Feed, FeedEntry, Follow
from feeds.timeline import Reader
from posts.pagination import START, Position
from tests.factories import PostCreatedFactory, PostDeletedFactory
from tests.large_tables import filled, nodes, plans_of, table_of

pytestmark = pytest.mark.django_db

BUSY, FOLLOWED, PULLED = (
    9_001,
    5_000,
    50,
)  # the reader, how many are followed, and of how many posts are pulled
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


@pytest.fixture(scope="module")
def large_tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with filled(django_db_blocker, FILL_BUSY):
        yield


@pytest.fixture
def busy_reader(large_tables: None) -> int:
    """Return the floor of the busy reader's feed."""
    return Feed.objects.get(user_id=BUSY).floor


def rows_read(act: Any) -> Counter[str]:
    """Return how many rows of each table the queries of `act` really read, whatever they made of
    them.

    No table of those that grow may be read whole.
    """
    found: Counter[str] = Counter()
    for plan in plans_of(act):
        for node in nodes(plan):
            if (table := table_of(node)) and node["Node Type"] not in (
                "ModifyTable",
                "Bitmap Index Scan",
            ):
                assert node["Node Type"] != "Seq Scan", node
                rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                found[table] += round(rows * node["Actual Loops"])
    return found


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
        read = rows_read(lambda: Reader(BUSY).read(position(busy_reader), LIMIT))  # noqa: B023 - called at once
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
    withdrawn = rows_read(
        lambda: fanout.withdraw([PostDeletedFactory(author_id=author, post_id=300_000)])
    )
    assert withdrawn["follows"] == followers
    assert withdrawn["feed_entries"] <= followers + 1


def test_a_rebuild_reads_a_look_up_for_each_author_and_what_fits_the_feed(busy_reader: int) -> None:
    read = rows_read(lambda: rebuild._fill(BUSY))
    assert FeedEntry.objects.filter(user_id=BUSY).count() == CAP
    assert read["follows"] <= FOLLOWED
    assert read["posts"] <= FOLLOWED + 4 * CAP
    assert read["feed_entries"] <= 2 * CAP


def test_a_step_of_the_walk_reads_only_its_feeds_and_no_entries(busy_reader: int) -> None:
    users = list(range(8_950, 9_002))
    Feed.objects.filter(user_id=8_960).update(last_read_at="2025-01-01T00:00:00Z")
    read = rows_read(lambda: housekeeping.put_to_rest(users))
    housekeeping.put_to_rest(users)
    assert Feed.objects.get(user_id=8_960).idle
    assert read["feeds"] <= 5 * len(users)
    assert read["feed_entries"] == 0
    assert read["follows"] <= len(users)
    assert rows_read(lambda: housekeeping._lock_next(5_000))["feeds"] == housekeeping.USERS_A_STEP


def test_the_queue_of_rebuilds_is_an_index_of_its_own(busy_reader: int) -> None:
    Feed.objects.filter(user_id__in=[77, BUSY]).update(rebuild_wanted=True)
    assert rows_read(housekeeping._claim)["feeds"] == 2 * 2  # each in the queue, and to take it off
