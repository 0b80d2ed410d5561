"""The hot statements on many partitions of which PostgreSQL knows little, and of the newest what
was true long ago.

Autovacuum never looks at the parent of partitions, and at a young partition when it gets to it: a
plan must not rest on what either would find. Nothing here is analysed but the newest partition,
when it had entries of five readers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from pytest_django import DjangoDbBlocker

from feeds import blocks, fanout, follows, housekeeping, live, mutes, rebuild
from feeds.live import Wanted
from feeds.models import Horizon, Withdrawal
from feeds.timeline import Reader
from posts.pagination import START, Position
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserBlockedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnfollowedFactory,
    UserUnmutedFactory,
)
from tests.feeds.partitioning import lay_out, partitions_undone
from tests.large_tables import filled, nodes, plans_of

pytestmark = pytest.mark.django_db

PARTITIONS = 12
POSTS = 1_000  # a partition; of 100 authors, each with 50 followers
AUTHOR, READER = 7, 5_007
NEWEST = PARTITIONS * POSTS

FILL = f"""
INSERT INTO posts (id, author_id, content, created_at)
    SELECT n, n % 100 + 1, 'post ' || n, now() FROM generate_series(1, {NEWEST}) AS n;
INSERT INTO follows (follower_id, followee_id, event_id)
    SELECT 5000 + n % 1000, n % 100 + 1, 1 FROM generate_series(1, 5000) AS n ON CONFLICT DO NOTHING;
INSERT INTO follows (follower_id, followee_id, event_id)
    SELECT 10000 + 50 * author + n, author, 1 FROM generate_series(1, 100) AS author, generate_series(1, 40) AS n;
INSERT INTO feeds (user_id) SELECT DISTINCT follower_id FROM follows UNION SELECT generate_series(1, 100);
ALTER TABLE feed_entries_{PARTITIONS} SET (autovacuum_enabled = off);
INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT follower_id, id, author_id FROM posts JOIN follows ON followee_id = author_id
    WHERE id > {NEWEST - POSTS} AND follower_id BETWEEN 5005 AND 5009 ORDER BY 1, 2;
ANALYZE feed_entries_{PARTITIONS}, posts, follows, feeds;
INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT follower_id, id, author_id FROM posts JOIN follows ON followee_id = author_id
    UNION ALL SELECT author_id, id, author_id FROM posts ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
"""  # noqa: S608 - numbers of our own


@pytest.fixture(scope="module")
def tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), partitions_undone():
        lay_out(*(n * POSTS + 1 for n in range(PARTITIONS)), NEWEST + 100_000)
        with filled(django_db_blocker, FILL):
            yield


@pytest.fixture
def told(tables: None) -> None:
    """Readers know where the partitions start."""
    Horizon.objects.create(starts=[n * POSTS + 1 for n in range(PARTITIONS)])
    Reader(READER).read(START, 1)


def withdrawal() -> None:
    Withdrawal.objects.create(post_id=NEWEST - 3, author_id=(NEWEST - 3) % 100 + 1)
    fanout.withdraw_part()


def deletions(count: int) -> list[Any]:
    posts = range(NEWEST - count + 1, NEWEST + 1)
    return [PostDeletedFactory(post_id=post, author_id=post % 100 + 1) for post in posts]


HOT: dict[str, Callable[[], object]] = {
    "first page": lambda: Reader(READER).read(START, 21),
    "a page further down": lambda: Reader(READER).read(Position(NEWEST // 2, newer=False), 21),
    "a page towards newer posts": lambda: Reader(READER).read(
        Position(NEWEST // 2, newer=True), 21
    ),
    "fan-out": lambda: fanout.deliver(
        [PostCreatedFactory(author_id=AUTHOR, post_id=NEWEST + 5)], careful=False
    ),
    "careful fan-out": lambda: fanout.deliver(
        [PostCreatedFactory(author_id=AUTHOR, post_id=NEWEST + 5)], careful=True
    ),
    "fan-out in parts": lambda: fanout.deliver_part(
        PostCreatedFactory(author_id=AUTHOR, post_id=NEWEST + 5), None
    ),
    "deletion": lambda: fanout.withdraw(deletions(1)),
    "deletions": lambda: fanout.withdraw(deletions(20)),
    "deletion in parts": withdrawal,
    "follow": lambda: follows.apply_follows(
        [UserFollowedFactory(follower_id=READER, followee_id=AUTHOR + 2)]
    ),
    "unfollow": lambda: follows.apply_unfollows(
        [UserUnfollowedFactory(follower_id=READER, followee_id=AUTHOR + 1)]
    ),
    "mute": lambda: mutes.apply_mutes([UserMutedFactory(user_id=READER, muted_id=AUTHOR + 1)]),
    "unmute": lambda: mutes.apply_mutes([UserUnmutedFactory(user_id=READER, muted_id=AUTHOR + 1)]),
    "block": lambda: blocks.apply_blocks(
        [UserBlockedFactory(blocker_id=READER, blocked_id=AUTHOR + 1)]
    ),
    "unblock": lambda: blocks.apply_blocks(
        [UserUnblockedFactory(blocker_id=READER, blocked_id=AUTHOR + 1)]
    ),
    "rebuild": lambda: rebuild._fill(READER),
    "what is new on a stream that was opened": lambda: live.find([Wanted(READER, None)]),
    "what is new on streams that go on": lambda: live.find(
        [Wanted(user, NEWEST - 50) for user in range(5_000, 5_100)]
    ),
    "walk": lambda: housekeeping.put_to_rest(range(5_000, 5_100)),
}


def touched(plan: dict[str, Any]) -> set[str]:
    return {
        node["Relation Name"]
        for node in nodes(plan)
        if node.get("Relation Name", "").startswith("feed_entries_")
    }


@pytest.mark.parametrize("name", HOT)
def test_no_partition_is_read_whole_and_nothing_spills(told: None, name: str) -> None:
    plans = plans_of(HOT[name])
    assert plans
    for plan in plans:
        assert plan.get("Temp Written Blocks", 0) == 0
        for node in nodes(plan):
            if node.get("Relation Name", "").startswith("feed_entries"):
                assert node["Node Type"] != "Seq Scan", node


@pytest.mark.parametrize(
    ("name", "at_most"),
    [
        ("first page", 4),
        ("a page further down", 4),
        ("what is new on a stream that was opened", 4),
        ("what is new on streams that go on", 1),
        ("deletion", 1),
        ("deletions", 1),
        ("deletion in parts", 1),
    ],
)
def test_only_the_partitions_that_matter_are_planned_for(
    told: None, name: str, at_most: int
) -> None:
    partitions = set().union(*(touched(plan) for plan in plans_of(HOT[name])))
    assert 1 <= len(partitions) <= at_most, partitions


def test_a_first_page_that_the_newest_partitions_do_not_fill_takes_few_more_statements(
    told: None,
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM feed_entries WHERE user_id = %s AND post_id > %s",
            [READER, NEWEST - 4 * POSTS],
        )
    pushed = [plan for plan in plans_of(HOT["first page"]) if touched(plan)]
    assert [len(touched(plan)) for plan in pushed] == [4, PARTITIONS - 4]


def test_an_unfollow_looks_at_the_posts_of_the_one_who_is_left_alone(told: None) -> None:
    plans = plans_of(HOT["unfollow"])
    rows = sum(
        node["Actual Rows"] * node["Actual Loops"]
        for plan in plans
        for node in nodes(plan)
        if touched_by(node)
    )
    assert 0 < rows <= 2 * NEWEST / 100


def touched_by(node: dict[str, Any]) -> bool:
    name: str = node.get("Relation Name", "")
    return name.startswith("feed_entries_") and node["Node Type"] != "ModifyTable"
