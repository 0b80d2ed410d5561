"""The hot queries on tables large enough to matter: each uses its index and reads no more than it
shows.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from pytest_django import DjangoDbBlocker

from eventbus.event import Event
from eventbus.models import ProcessedEvent
from feeds import blocks, fanout, follows, live, mutes, seen
from feeds.live import Wanted
from feeds.models import Feed, Follow
from feeds.timeline import Reader
from posts import edits
from posts.models import Block, Fanout, Post
from posts.pagination import START, Position
from tests.factories import (
    FeedSeenFactory,
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserBlockedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnmutedFactory,
)
from tests.large_tables import FILL, assert_no_full_scan, filled, nodes, plans_of, scans

pytestmark = pytest.mark.django_db

# More than there ever are, and not analysed.
WAITING = """
INSERT INTO waiting_edits (event_id, post_id, author_id, content, changes_data)
SELECT n, n, n % 2000 + 1, 'early', false FROM generate_series(1, 100000) AS n
"""


@pytest.fixture(scope="module")
def large_tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with filled(django_db_blocker, FILL):
        yield


def test_the_first_page_reads_entries_and_posts_by_their_keys(large_tables: None) -> None:
    assert_no_full_scan(
        lambda: Reader(77).read(START, 21), "feed_entries", "posts", "feeds", queries=2
    )


def test_below_the_floor_each_followed_author_costs_one_look_up(large_tables: None) -> None:
    Feed.objects.filter(user_id=9000).update(floor=200_000)
    assert_no_full_scan(lambda: Reader(9000).read(START, 21), "posts", "follows", queries=3)


def test_a_link_to_newer_posts_stops_at_the_first_author_who_has_one(large_tables: None) -> None:
    [plan] = plans_of(lambda: Reader(9000).any_beyond(Position(1_000, newer=True)))
    assert [
        node["Actual Loops"] for node in nodes(plan) if node.get("Relation Name") == "posts"
    ] == [1]


def test_what_is_beyond_a_position_is_told_in_both_directions(large_tables: None) -> None:
    Feed.objects.filter(user_id=9000).update(floor=200_000)
    reader = Reader(9000)
    newest, oldest = reader.read(START, 1)[0].id, reader.read(Position(0, newer=True), 1)[0].id
    assert not reader.any_beyond(Position(newest, newer=True))
    assert reader.any_beyond(Position(newest - 1, newer=True))
    assert not reader.any_beyond(Position(oldest - 1, newer=False))
    assert reader.any_beyond(Position(oldest, newer=False))


def test_lists_read_only_their_page(large_tables: None) -> None:
    assert_no_full_scan(lambda: Post.objects.page_of(7, START, 21), "posts")
    assert_no_full_scan(lambda: Follow.objects.followers_page(7, START, 21), "follows")
    assert_no_full_scan(lambda: Follow.objects.following_page(9000, START, 21), "follows")
    assert_no_full_scan(lambda: mutes.muted_page(7, START, 21), "mutes")
    assert_no_full_scan(lambda: blocks.blocked_page(7, START, 21), "blocks")


def test_posts_are_found_by_their_ids(large_tables: None) -> None:
    assert_no_full_scan(lambda: Post.objects.find(range(5, 100_005, 1_000)), "posts")


def test_edits_find_their_posts_by_their_keys(large_tables: None) -> None:
    there = [PostEditedFactory(post_id=n, author_id=n % 2000 + 1) for n in range(1, 500)]
    assert_no_full_scan(lambda: edits.apply_edits(there), "posts")
    early = [PostEditedFactory() for _ in range(500)]
    assert_no_full_scan(lambda: edits.apply_edits(early), "posts", queries=2)


def test_edits_that_wait_are_found_by_an_index(large_tables: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(WAITING)
    posts = [PostCreatedFactory() for _ in range(500)]
    assert_no_full_scan(lambda: Post.objects.store(posts), "waiting_edits", queries=3)
    gone = [PostDeletedFactory() for _ in range(500)]
    assert_no_full_scan(lambda: Post.objects.leave_tombstones(gone), "waiting_edits", queries=2)


def test_followers_are_counted_by_one_look_up(large_tables: None) -> None:
    assert_no_full_scan(lambda: fanout.follower_counts([7, 8, 9]), "feeds")


def test_markers_are_raised_by_one_look_up_each(large_tables: None) -> None:
    facts = [FeedSeenFactory(user_id=user) for user in (7, 8, 9)]
    assert_no_full_scan(lambda: seen.apply_seen(facts), "feeds")
    assert_no_full_scan(lambda: follows.lock_feeds([7, 8, 9]), "feeds")


def test_the_audience_comes_from_the_index_of_followees(large_tables: None) -> None:
    assert_no_full_scan(lambda: list(follows.audience({7})), "follows")


def test_what_is_new_in_feeds_with_streams_is_looked_up_in_indexes(large_tables: None) -> None:
    Feed.objects.filter(user_id__in=(1, 2, 3)).update(pulled_since=Now())
    Post.objects.filter(author_id__in=(1, 2, 3), id__gt=190_000).update(fanout=Fanout.PULL)
    opened = [Wanted(user, None) for user in (*range(1, 101), 9_000)]  # the last has no entries
    gone_on = [Wanted(user, 150_000) for user in range(101, 201)]
    tables = ("feed_entries", "posts", "feeds", "follows")
    assert_no_full_scan(lambda: live.find(opened + gone_on), *tables, queries=2)


def test_deleted_posts_are_looked_up_by_their_key(large_tables: None) -> None:
    assert_no_full_scan(lambda: Feed.objects.watched_among(range(1, 501), range(1, 501)), "posts")


def test_processed_events_are_looked_up_by_their_key(large_tables: None) -> None:
    events: list[Event] = [PostCreatedFactory().to_event() for _ in range(100)]
    assert_no_full_scan(lambda: ProcessedEvent.objects.ids_among(events), "processed_events")


def test_a_follow_costs_the_same_queries_for_any_number_of_pairs(
    large_tables: None, django_assert_num_queries: Any
) -> None:
    facts = [
        UserFollowedFactory(follower_id=9000, followee_id=followee)
        for followee in range(1001, 1051)
    ]
    with django_assert_num_queries(4):  # active before, write, count, back-fill
        follows.apply_follows(facts)


def test_a_follow_looks_mutes_and_blocks_up_by_their_key(large_tables: None) -> None:
    facts = [
        UserFollowedFactory(follower_id=9000, followee_id=followee) for followee in range(1, 51)
    ]
    plans = plans_of(lambda: follows.apply_follows(facts))
    seen = {scan for plan in plans for scan in scans(plan) if scan[1] in ("mutes", "blocks")}
    assert {table for _, table in seen} == {"mutes", "blocks"}
    assert not {scan for scan in seen if scan[0] == "Seq Scan"}, seen


def test_who_is_hidden_costs_a_look_up_each_way(large_tables: None) -> None:
    assert_no_full_scan(lambda: Block.objects.among(7, [8]), "blocks")
    assert_no_full_scan(lambda: Block.objects.among(7, range(1, 101)), "blocks")


@pytest.mark.parametrize("kind", [UserBlockedFactory, UserUnblockedFactory])
def test_blocks_cost_a_look_up_each(large_tables: None, kind: Any) -> None:
    facts = [kind(blocker_id=9000, blocked_id=blocked) for blocked in range(1, 51)]
    plans = plans_of(lambda: blocks.apply_blocks(facts))
    seen = [scan for plan in plans for scan in scans(plan)]
    full = [
        scan for scan in seen if scan[0] == "Seq Scan" and scan[1] in ("blocks", "follows", "posts")
    ]
    assert full == [], seen


@pytest.mark.parametrize("kind", [UserMutedFactory, UserUnmutedFactory])
def test_mutes_cost_a_look_up_each(large_tables: None, kind: Any) -> None:
    facts = [kind(user_id=9000, muted_id=muted) for muted in range(1, 51)]
    plans = plans_of(lambda: mutes.apply_mutes(facts))
    seen = [scan for plan in plans for scan in scans(plan)]
    full = [
        scan for scan in seen if scan[0] == "Seq Scan" and scan[1] in ("mutes", "follows", "posts")
    ]
    assert full == [], seen


def test_the_fan_out_finds_whom_to_write_for_in_one_index(large_tables: None) -> None:
    mutes.apply_mutes([UserMutedFactory(user_id=user, muted_id=7) for user in range(1, 30)])
    post = PostCreatedFactory(author_id=7, post_id=10**7)
    [_, _, deliver] = plans_of(lambda: fanout.deliver([post], careful=False))
    of_follows = [node for node in nodes(deliver) if node.get("Relation Name") == "follows"]
    assert "follows_to_deliver" in {node.get("Index Name") for node in nodes(deliver)}
    assert sum(node.get("Rows Removed by Filter", 0) for node in of_follows) == 0
