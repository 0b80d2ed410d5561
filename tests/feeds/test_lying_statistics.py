"""The hot statements on large tables of which statistics say what is not true.

Autovacuum comes when it can: a table may be of any size while it is taken to be empty, or huge. What
a statement costs must not rest on that, so what is counted here is what it looked at: pages, and
rows that it passed over.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from django.utils import timezone
from pytest_django import DjangoDbBlocker

from eventbus import cells, pruning
from eventbus.consume import offsets
from eventbus.database import locks
from eventbus.database.sql import execute, fetch
from eventbus.deadletters import replay
from eventbus.ids import idempotency
from eventbus.models import DeadLetter, Erasure, ProcessedEvent
from eventbus.watch import outcomes, pipeline
from feeds import (
    blocks,
    erasure,
    export,
    fanout,
    follows,
    housekeeping,
    inspector,
    mutes,
    rebuild,
    seen,
    timeline,
    verification,
)
from feeds.models import Feed, Follow, Withdrawal
from feeds.timeline import Range, Reader
from posts import edits
from posts.models import ALIVE, Block, Post
from posts.pagination import START, Position
from tests.factories import (
    FeedSeenFactory,
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserBlockedFactory,
    UserErasedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnfollowedFactory,
    UserUnmutedFactory,
)
from tests.feeds.partitioning import lay_out, partitions_undone
from tests.large_tables import filled, nodes, plans_of

pytestmark = pytest.mark.django_db

AUTHORS, POSTS, PARTITIONS = 2_000, 200_000, 10
READERS = 100_000  # from 10,001 on
READER, AUTHOR, CELEBRITY = 10_077, 7, 9_000
FOLLOWED = 100  # by the reader: the first authors
FOLLOWERS = 200  # of each author
PULLED = 1_999
A_PARTITION = POSTS // PARTITIONS

FILL = f"""
INSERT INTO posts (id, author_id, content, created_at, fanout)
    SELECT n, n % {AUTHORS} + 1, 'post ' || n, now(), CASE WHEN n % {AUTHORS} + 1 = {PULLED} THEN 1 ELSE 0 END
    FROM generate_series(1, {POSTS}) AS n;
INSERT INTO feeds (user_id, follower_count, pulled_since)
    SELECT n, {FOLLOWERS}, CASE WHEN n = {PULLED} THEN now() END FROM generate_series(1, 10000) AS n
    UNION ALL SELECT n, 0, NULL FROM generate_series(10001, 10000 + {READERS}) AS n;
INSERT INTO follows (follower_id, followee_id, event_id, active)
    SELECT 10001 + (n::bigint * 7919) % {READERS}, n % {AUTHORS} + 1, 1, n % 11 > 0
    FROM generate_series(1, {AUTHORS * FOLLOWERS}) AS n
    UNION SELECT {READER}, n, 1, true FROM generate_series(1, {FOLLOWED}) AS n
    UNION SELECT {READER}, {PULLED}, 1, true
    UNION SELECT 10001 + n, {CELEBRITY}, 1, true FROM generate_series(1, 30000) AS n
    ON CONFLICT DO NOTHING;
INSERT INTO mutes (user_id, muted_id, active, event_id)
    SELECT 10001 + (n::bigint * 7919) % {READERS}, n % {AUTHORS} + 1, n % 2 = 0, 1
    FROM generate_series(1, 100000) AS n ON CONFLICT DO NOTHING;
INSERT INTO blocks (blocker_id, blocked_id, blocked_event_id)
    SELECT 10001 + (n::bigint * 7919) % {READERS}, n % {AUTHORS} + 1, n % 2
    FROM generate_series(1, 100000) AS n ON CONFLICT DO NOTHING;
INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT 10001 + (n::bigint * 7919 + k * 331) % {READERS}, n, n % {AUTHORS} + 1
    FROM generate_series(1, {POSTS}) AS n, generate_series(1, 3) AS k
    UNION SELECT {READER}, n, n % {AUTHORS} + 1 FROM generate_series(1, {POSTS}) AS n
    WHERE n % {AUTHORS} < {FOLLOWED}
    ON CONFLICT DO NOTHING;
INSERT INTO processed_events (event_id, type) SELECT n, 'post.created' FROM generate_series(1, 200000) AS n;
INSERT INTO waiting_edits (event_id, post_id, author_id, content, changes_data)
    SELECT n, {POSTS} + n, n % {AUTHORS} + 1, 'early', false FROM generate_series(1, 50000) AS n;
INSERT INTO idempotency_keys (user_id, key, fingerprint, event_id, object_id)
    SELECT 10001 + n % 5000, n, '', 1, 1 FROM generate_series(1, 50000) AS n;
INSERT INTO erasures (user_id, event_id, step, finished_at)
    SELECT n, 1, 'feed', now() FROM generate_series(1000000, 1050000) AS n;
INSERT INTO withdrawals (post_id, author_id)
    SELECT {10 * POSTS} + n, {AUTHORS} + 1 + n % 5000 FROM generate_series(1, 50000) AS n;
INSERT INTO dead_letter_groups (fingerprint, event_type, exception, message, failures, first_seen, last_seen)
    SELECT n, 'post.created', 'E', '', 0, now(), now() FROM generate_series(1, 200) AS n;
INSERT INTO dead_letters (group_id, state, topic, key, value, headers, event_id, event_type, attempts, replays,
        discard_reason, last_failed_at, resolved_at)
    SELECT g.id, CASE WHEN n % 50 = 0 THEN 'open' ELSE 'resolved' END, 'feed-events', 'k', 'v', '[]',
        n, 'post.created', 1, 0, '', now(), now()
    FROM generate_series(1, 300) AS n, dead_letter_groups AS g;
INSERT INTO dead_letter_failures (entry_id, topic, partition, "offset", timestamp_ms, consumer_group, exception,
        message, stack_trace, retries, first_failed_at, failed_at)
    SELECT id, 'feed-events', 0, id, 0, 'fanout', 'E', '', '', 0, now(), now() FROM dead_letters;
"""  # noqa: S608 - numbers of our own
ALSO_FILLED = """
waiting_edits, idempotency_keys, erasures, withdrawals, dead_letter_groups, dead_letters, dead_letter_failures
"""

# What PostgreSQL is told of each table and index: pages, rows, distinct values of each column.
# That nothing was ever analysed is what `test_query_plans` is about.
LIES: dict[str, tuple[int, float, float]] = {
    "taken to be empty": (1_000, 0, 0),
    "taken to be huge": (1, 1e6, -1),
}
_OURS = """
FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'i', 'I')
    AND relname !~ '^(auth|django|axes)_'
"""
_FORGET_SIZES = f"SELECT pg_clear_relation_stats(current_schema()::text, relname::text) {_OURS}"
_FORGET_VALUES = f"""
SELECT pg_clear_attribute_stats(current_schema()::text, relname::text, attname::text, false)
FROM (SELECT oid, relname {_OURS} AND relkind = 'r') AS tables JOIN pg_attribute ON attrelid = oid AND attnum > 0
"""  # noqa: S608 - constants
_TELL_SIZES = f"""
SELECT pg_restore_relation_stats(
    'schemaname', current_schema()::text, 'relname', relname::text, 'relpages', %s, 'reltuples', %s::real
) {_OURS}
"""
_TELL_VALUES = f"""
SELECT pg_restore_attribute_stats(
    'schemaname', current_schema()::text, 'relname', relname::text, 'attname', attname::text, 'inherited', false,
    'null_frac', 0::real, 'avg_width', 8, 'n_distinct', %s::real
)
FROM (SELECT oid, relname {_OURS} AND relkind = 'r') AS tables JOIN pg_attribute ON attrelid = oid AND attnum > 0
"""  # noqa: S608 - constants


@pytest.fixture(scope="module")
def tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), partitions_undone():
        lay_out(*(n * A_PARTITION + 1 for n in range(PARTITIONS)), 10**7)
        with filled(django_db_blocker, FILL):
            yield
            execute(f"TRUNCATE {ALSO_FILLED} RESTART IDENTITY")


@pytest.fixture(scope="module", params=LIES)
def lie(tables: None, django_db_blocker: DjangoDbBlocker, request: pytest.FixtureRequest) -> None:
    with django_db_blocker.unblock():
        fetch(_FORGET_SIZES)
        fetch(_FORGET_VALUES)
        pages, rows, distinct = LIES[request.param]
        fetch(_TELL_SIZES, [pages, rows])
        if distinct:
            fetch(_TELL_VALUES, [distinct])


class Case(NamedTuple):
    act: Callable[[], object]
    keys: int  # that it is about: each may cost some pages of some indexes


def posts_by(author: int, count: int) -> range:
    """Return the newest ids of posts by the author."""
    newest = POSTS - AUTHORS + author - 1
    return range(newest, 0, -AUTHORS)[:count]


def new_posts(count: int) -> list[Any]:
    return [
        PostCreatedFactory(author_id=n % AUTHORS + 1, post_id=5 * POSTS + n) for n in range(count)
    ]


def deletions(count: int) -> list[Any]:
    return [
        PostDeletedFactory(post_id=n, author_id=n % AUTHORS + 1)
        for n in range(POSTS, 0, -POSTS // count)[:count]
    ]


def withdrawal() -> None:
    Withdrawal.objects.create(post_id=3, author_id=CELEBRITY)
    fanout.withdraw_part()


def step_of_erasure(step: str) -> Callable[[], object]:
    def act() -> object:
        erasure.apply([UserErasedFactory(user_id=READER)])
        place = erasure.Place(READER, Erasure.objects.get(user_id=READER).event_id, step, 0)
        return erasure.STEPS[step](place)

    return act


def section(kind: str, user: int) -> Callable[[], object]:
    [wanted] = [each for each in export.SECTIONS if each.kind == kind]
    return lambda: list(export._section(wanted, user))


def pairs(kind: Any, follower: str, followee: str, count: int) -> list[Any]:
    """Return facts about pairs of many users, of which some follow, mute and block each other."""
    return [
        kind(**{follower: 10_001 + (n * 7919) % READERS, followee: n % AUTHORS + 1})
        for n in range(1, count + 1)
    ]


def follow_facts(kind: Any, count: int) -> list[Any]:
    return pairs(kind, "follower_id", "followee_id", count)


def mute_facts(kind: Any, count: int) -> list[Any]:
    return pairs(kind, "user_id", "muted_id", count)


def block_facts(kind: Any, count: int) -> list[Any]:
    return pairs(kind, "blocker_id", "blocked_id", count)


def edited(count: int, first: int) -> list[Any]:
    return [
        PostEditedFactory(post_id=n, author_id=n % AUTHORS + 1) for n in range(first, first + count)
    ]


def resting(count: int) -> None:
    users = list(range(10_001, 10_001 + count))
    Feed.objects.filter(user_id__in=users).update(last_read_at=timezone.now() - timedelta(days=999))
    housekeeping.put_to_rest(users)


def included(user: int) -> None:
    resting(1)
    rebuild._include(user)


def some_dead_letters(count: int) -> list[int]:
    first = DeadLetter.objects.order_by("id").values_list("id", flat=True)[0]
    return list(range(first, first + 50 * count, 50))


PRUNED: dict[str, Any] = {
    "after": 0,
    "below": 2_000,
    "before": timezone.now(),
    "limit": 1_000,
    "dry_run": False,
    "unresolved": list(DeadLetter.UNRESOLVED),
}
PAGE = 21
FEED = FOLLOWED * POSTS // AUTHORS  # rows of the reader
# In a transaction that has begun as those of workers and housekeepers do.
BY_WORKERS: dict[str, Case] = {
    "fan-out": Case(lambda: fanout.deliver(new_posts(1), careful=False), FOLLOWERS),
    "fan-out of a batch": Case(
        lambda: fanout.deliver(new_posts(100), careful=False), 100 * FOLLOWERS
    ),
    "fan-out again": Case(lambda: fanout.deliver(new_posts(100), careful=True), 100 * FOLLOWERS),
    "fan-out in parts": Case(
        lambda: fanout.deliver_part(
            PostCreatedFactory(author_id=CELEBRITY, post_id=5 * POSTS), None
        ),
        30_000,
    ),
    "deletion": Case(lambda: fanout.withdraw(deletions(1)), FOLLOWERS),
    "deletions": Case(lambda: fanout.withdraw(deletions(20)), 20 * FOLLOWERS),
    "deletion in parts": Case(withdrawal, 30_000),
    "deletion for later": Case(lambda: fanout.withdraw_later(deletions(1)[0]), 1),
    "follow": Case(lambda: follows.apply_follows(follow_facts(UserFollowedFactory, 1)), 200),
    "follows": Case(
        lambda: follows.apply_follows(follow_facts(UserFollowedFactory, 200)), 200 * 100
    ),
    "unfollow": Case(lambda: follows.apply_unfollows(follow_facts(UserUnfollowedFactory, 1)), 200),
    "unfollows": Case(
        lambda: follows.apply_unfollows(follow_facts(UserUnfollowedFactory, 200)), 200 * 100
    ),
    "mutes": Case(lambda: mutes.apply_mutes(mute_facts(UserMutedFactory, 200)), 200 * 100),
    "unmutes": Case(lambda: mutes.apply_mutes(mute_facts(UserUnmutedFactory, 200)), 200 * 100),
    "blocks": Case(lambda: blocks.apply_blocks(block_facts(UserBlockedFactory, 200)), 400 * 100),
    "unblocks": Case(
        lambda: blocks.apply_blocks(block_facts(UserUnblockedFactory, 200)), 400 * 100
    ),
    "markers": Case(
        lambda: seen.apply_seen([FeedSeenFactory(user_id=user) for user in range(10_001, 10_101)]),
        100,
    ),
    "locks of feeds": Case(lambda: follows.lock_feeds(range(10_001, 10_201)), 200),
    "rows of new users": Case(
        lambda: Feed.objects.ensure(range(109_900, 110_100), cells.own().holds), 200
    ),
    "rebuild": Case(lambda: rebuild._fill(READER), FEED + 1_000),
    "inclusion": Case(lambda: included(10_001), 20),
    "rest": Case(lambda: resting(50), 50 * 10),
    "walk": Case(lambda: housekeeping._lock_next(10_500), 100),
    "erasure": Case(lambda: erasure.apply([UserErasedFactory(user_id=READER)]), FOLLOWED),
    **{f"erasure: {step}": Case(step_of_erasure(step), 50_000) for step in erasure.STEPS},
    "edits": Case(lambda: edits.apply_edits(edited(100, 1)), 100),
    "early edits": Case(lambda: edits.apply_edits(edited(100, 8 * POSTS)), 100),
    "posts that edits wait for": Case(
        lambda: Post.objects.store(
            [
                PostCreatedFactory(post_id=POSTS + n, author_id=n % AUTHORS + 1)
                for n in range(1, 101)
            ]
        ),
        100,
    ),
    "tombstones": Case(lambda: Post.objects.leave_tombstones(deletions(200)), 200),
    "processed before": Case(
        lambda: ProcessedEvent.objects.ids_among(
            [PostCreatedFactory(event_id=n).to_event() for n in range(1, 200_000, 1_000)]
        ),
        200,
    ),
    "processed": Case(
        lambda: ProcessedEvent.objects.record(
            [PostCreatedFactory(author_id=n).to_event() for n in range(1, 201)],
            [0.0] * 200,
            uuid4(),
        ),
        200,
    ),
}
OTHERS: dict[str, Case] = {
    "first page": Case(lambda: Reader(READER).read(START, PAGE), 2 * PAGE + FOLLOWED),
    "page": Case(
        lambda: Reader(READER).read(Position(POSTS // 2, newer=False), PAGE), 2 * PAGE + FOLLOWED
    ),
    "page of newer posts": Case(
        lambda: Reader(READER).read(Position(POSTS // 2, newer=True), PAGE), 2 * PAGE + FOLLOWED
    ),
    "page below the floor": Case(
        lambda: Reader(READER)._nearest(
            timeline._OLDER, timeline._FOLLOWED, ALIVE, Range(0, POSTS), PAGE
        ),
        3 * FOLLOWED,
    ),
    "anything beyond": Case(lambda: Reader(READER).any_beyond(Position(5, newer=False)), FOLLOWED),
    "pulled authors": Case(lambda: Follow.objects.pulled_by(READER), FOLLOWED),
    "followers": Case(lambda: Follow.objects.followers_page(AUTHOR, START, PAGE), PAGE),
    "following": Case(lambda: Follow.objects.following_page(READER, START, PAGE), PAGE),
    "muted": Case(lambda: mutes.muted_page(READER, START, PAGE), PAGE),
    "blocked": Case(lambda: blocks.blocked_page(READER, START, PAGE), PAGE),
    "posts of an author": Case(lambda: Post.objects.page_of(AUTHOR, START, PAGE), PAGE),
    "posts by ids": Case(lambda: Post.objects.find(range(5, POSTS, POSTS // 100)), 100),
    "who is hidden": Case(lambda: Block.objects.among(READER, range(1, 101)), 100),
    "read noted": Case(lambda: Feed.objects.note_read(READER), 1),
    "what to void": Case(
        lambda: Feed.objects.watched_among(range(1, 501), range(1, POSTS, POSTS // 500)), 1_000
    ),
    "inspector": Case(lambda: inspector._compare(READER), 5 * FOLLOWED),
    "audience": Case(lambda: list(follows.audience(range(1, 51))), 50 * FOLLOWERS),
    "follower counts": Case(lambda: fanout.follower_counts(range(1, 201)), 200),
    "queue of rebuilds": Case(housekeeping._claim, 20),
    # Whole tables are looked through here, but once.
    "states of all": Case(lambda: verification._wrong_states(None), 2_000_000),
    "next erasure": Case(lambda: (erasure._claim(), erasure.oldest_seconds()), 2),
    **{f"export: {each.kind}": Case(section(each.kind, READER), 1_000) for each in export.SECTIONS},
    "offsets": Case(
        lambda: offsets.advance("g", "t", "", "s", {n: offsets.Move(1, 2) for n in range(50)}), 50
    ),
    "idempotency key": Case(lambda: idempotency.reserve(READER, "k", "r"), 20),
    "pruning of events": Case(lambda: fetch(pruning._PRUNE_EVENTS, PRUNED), 10_000),
    "pruning of keys": Case(lambda: execute(pruning._DELETE_KEYS, [timezone.now(), 100]), 100),
    "pruning of dead letters": Case(lambda: pruning._delete_dead_letters(timezone.now()), 5_000),
    "discarding": Case(lambda: replay.discard(some_dead_letters(100), reason="r"), 100),
    "closing what was replayed": Case(
        lambda: DeadLetter.objects.close_replayed(some_dead_letters(100)), 100
    ),
    "tokens": Case(lambda: DeadLetter.objects.tokens(some_dead_letters(100)), 100),
    "outcome": Case(lambda: outcomes.outcome_of(10**6), 10),
    "groups of dead letters": Case(pipeline.dead_letters, 2_000),
}
CASES = BY_WORKERS | OTHERS
# Blocks of indexes and tables that a key may cost, and what every statement may.
BLOCKS_A_KEY, BLOCKS = 20, 400
ROWS_A_KEY, ROWS = 10, 30_000


def looked_at(plan: dict[str, Any]) -> int:
    """Return how many rows the nodes of a plan have had in their hands."""
    passed = (
        "Rows Removed by Filter",
        "Rows Removed by Join Filter",
        "Rows Removed by Index Recheck",
    )
    rows = 0.0
    for node in nodes(plan):
        each = node["Actual Rows"] + sum(node.get(name, 0) for name in passed)
        rows += each * node["Actual Loops"]
    return int(rows)


def outline(plan: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return what each node of a plan did: for whoever has to find out why it did so much."""
    wanted = ("Node Type", "Relation Name", "Index Name", "Actual Rows", "Actual Loops")
    return [
        (*(node.get(name) for name in wanted), node["Shared Hit Blocks"]) for node in nodes(plan)
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_statement_costs_what_it_is_about(lie: None, name: str) -> None:
    case = CASES[name]
    execute("SET LOCAL statement_timeout = '20s'")
    if name in BY_WORKERS:
        locks.join_workers()
    for plan in plans_of(case.act):
        touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        assert touched <= BLOCKS + BLOCKS_A_KEY * case.keys, outline(plan)
        assert looked_at(plan) <= ROWS + ROWS_A_KEY * case.keys, outline(plan)
