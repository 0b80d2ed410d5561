"""`feed_entries` by age: a full partition gets a successor, an old one goes, and no feed notices."""

import time
from collections.abc import Iterator

import pytest
from django.core.management import CommandError, call_command
from django.db import InternalError, OperationalError, connection, transaction
from pytest_django import Settings

from feeds import housekeeping, verification
from feeds.models import Feed, FeedEntry
from feeds.partitions import Partition, _lock, drop_emptied, keep_up, keeper, partitions, start_next
from feeds.rebuild import rebuild
from feeds.timeline import Reader
from posts.events import PostCreated
from posts.pagination import START
from tests.eventbus.events import counted, eventually
from tests.factories import PostCreatedFactory, PostDeletedFactory, UserFollowedFactory, UserUnfollowedFactory
from tests.feeds.elsewhere import elsewhere
from tests.feeds.model import expected_feed, feed, history
from tests.feeds.partitioning import partitions_undone, rows_by_partition, vacuum
from tests.feeds.worker import Worker
from tests.large_tables import nodes, plans_of

pytestmark = pytest.mark.django_db(transaction=True)

READERS = range(2, 7)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    with partitions_undone():
        yield


@pytest.fixture
def worker() -> Worker:
    """Five readers of author 1."""
    worker = Worker()
    worker.process(*(UserFollowedFactory(follower_id=reader, followee_id=1) for reader in READERS))
    return worker


def posts(worker: Worker, count: int = 3) -> list[int]:
    """Have the author post; return the ids, newest first."""
    facts = [PostCreatedFactory(author_id=1) for _ in range(count)]
    worker.process(*facts)
    return [fact.post_id for fact in reversed(facts)]


def locked(table: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_locks WHERE relation = %s::regclass AND mode = 'AccessExclusiveLock' AND granted", [table]
        )
        return bool(cursor.rowcount)


def tidy() -> None:
    with transaction.atomic():
        housekeeping.tidy(list(Feed.objects.values_list("user_id", flat=True)))


def assert_adjoining(found: list[Partition]) -> None:
    assert [found[0].start, found[-1].end] == [None, None]
    assert [partition.end for partition in found[:-1]] == [partition.start for partition in found[1:]]


# A new partition -----------------------------------------------------------------------------------------------


def test_all_entries_are_in_one_partition_at_first(worker: Worker) -> None:
    posts(worker)
    assert [partition[:3] for partition in partitions()] == [("feed_entries_1", None, None)]
    assert rows_by_partition() == {"feed_entries_1": 3 * 6}


def test_what_is_posted_after_the_newest_partition_was_full_goes_into_another(
    worker: Worker, settings: Settings
) -> None:
    settings.FEED_PARTITION_ROWS = 1
    older = posts(worker)
    keep_up()
    newer = posts(worker, 2)
    assert rows_by_partition() == {"feed_entries_1": 3 * 6, "feed_entries_2": 2 * 6}
    settings.FEED_PARTITION_ROWS = 1_000
    keep_up()
    for name in ("feed_entries_1", "feed_entries_2"):
        assert counted("feed_entries_partition_rows", partition=name) == 157
    first, second = partitions()
    assert (second.name, second.start) == ("feed_entries_2", older[0] + 1)
    assert_adjoining([first, second])
    assert feed(2) == newer + older


def test_nothing_is_started_while_there_is_room_or_nothing_new(worker: Worker, settings: Settings) -> None:
    posts(worker)
    keep_up()
    assert len(partitions()) == 1
    settings.FEED_PARTITION_ROWS = 1
    keep_up()
    keep_up()
    assert start_next() is None
    assert len(partitions()) == 2


def test_a_new_partition_is_vacuumed_like_the_first(worker: Worker) -> None:
    posts(worker)
    start_next()
    with connection.cursor() as cursor:
        cursor.execute("SELECT reloptions FROM pg_class WHERE relname IN ('feed_entries_1', 'feed_entries_2')")
        first, second = cursor.fetchall()
    assert first == second
    assert "autovacuum_vacuum_insert_scale_factor=0.05" in first[0]


def test_feeds_are_right_across_partitions_whatever_happens_to_old_posts(worker: Worker) -> None:
    """Deletions, unfollows, follows and redelivered events reach back into partitions that are closed."""
    steps = [("follow", reader, author) for reader in range(1, 5) for author in range(5, 9)]
    steps += [("post", author, 0) for author in range(5, 9) for _ in range(4)]
    facts = history(steps, first_user=100)
    for turn in range(4):
        facts += [PostCreatedFactory(author_id=author) for author in range(105, 109)]
        worker.process(*facts)
        assert start_next() == f"feed_entries_{turn + 2}"
    old = [fact for fact in facts if isinstance(fact, PostCreated)]
    facts += [PostDeletedFactory(post_id=post.post_id, author_id=post.author_id) for post in old[::5]]
    facts.append(UserUnfollowedFactory(follower_id=101, followee_id=105))
    facts.append(UserFollowedFactory(follower_id=109, followee_id=106))
    worker.process(*facts)
    assert len(rows_by_partition()) == 5 - 1
    for reader in (101, 102, 103, 104, 109):
        assert feed(reader) == expected_feed(facts, reader)
    assert worker.dead_letters == []
    assert verification.verify().equal


def test_a_page_is_read_from_the_newest_partition_that_fills_it() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO feeds (user_id) SELECT generate_series(1, 1000)")
        for first in (1, 2_001, 4_001, 6_001):
            start_next()
            cursor.execute(
                "INSERT INTO posts (id, author_id, content, created_at) "
                "SELECT n, 1, 'a post', now() FROM generate_series(%s, %s) AS n",
                [first, first + 1_999],
            )
            cursor.execute(
                "INSERT INTO feed_entries "
                "SELECT reader, id, 1 FROM generate_series(1, 10) AS reader, posts WHERE id >= %s ORDER BY 1, 2",
                [first],
            )
        cursor.execute("VACUUM ANALYZE posts, feeds, feed_entries")
    plan = plans_of(lambda: Reader(7).read(START, 21))[0]
    rows = {
        node["Relation Name"]: node["Actual Loops"] and node["Actual Rows"]
        for node in nodes(plan)
        if "feed_entries" in node.get("Relation Name", "")
    }
    assert rows == {"feed_entries_4": 21, "feed_entries_3": 0, "feed_entries_2": 0, "feed_entries_1": 0}
    assert [post.id for post in Reader(7).read(START, 3_000)] == list(range(8_000, 5_000, -1))


def test_a_table_that_somebody_holds_is_left_alone_and_readers_wait_no_longer_than_a_moment(
    worker: Worker, settings: Settings
) -> None:
    settings.FEED_PARTITION_ROWS = 1
    posts(worker)
    with transaction.atomic():
        feed(2)  # as a dump does for hours
        with elsewhere() as do:
            with pytest.raises(OperationalError, match="lock timeout"):
                do(start_next).result(10)
            with pytest.raises(CommandError, match=r"No partition was added, see the runbook: .* lock timeout"):
                do(call_command, "add_partition").result(10)
    assert len(partitions()) == 1
    with keeper():
        eventually(lambda: len(partitions()) == 2)


def test_a_process_that_freezes_while_it_keeps_readers_waiting_loses_its_transaction(worker: Worker) -> None:
    [newest, *_] = posts(worker)

    def freeze() -> None:
        with transaction.atomic():
            _lock("feed_entries_1")
            time.sleep(4)
            start_next()

    with elsewhere() as do:
        frozen = do(freeze)
        eventually(lambda: locked("feed_entries"))
        assert feed(2)[0] == newest
        with pytest.raises(InternalError, match="terminating connection due to idle-in-transaction timeout"):
            frozen.result(10)


def test_only_one_process_at_a_time_changes_the_partitions(worker: Worker) -> None:
    posts(worker)
    with elsewhere() as do, transaction.atomic():
        assert start_next()
        assert do(drop_emptied).result(10) is None
    assert len(partitions()) == 2


def test_the_command_adds_a_partition_and_shows_all(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    [newest, *_] = posts(worker)
    call_command("add_partition")
    assert capsys.readouterr().out.splitlines() == [
        f"feed_entries_1: posts from the first to {newest}, 157 rows",
        f"feed_entries_2: posts {newest + 1} to the last, 0 rows",
    ]
    with pytest.raises(CommandError, match="the newest one is empty"):
        call_command("add_partition")


# An old partition ----------------------------------------------------------------------------------------------


@pytest.fixture
def aged(worker: Worker, settings: Settings) -> list[int]:
    """Four partitions of three posts each, of which only two are to be kept; returns the posts, newest first."""
    settings.FEED_PARTITIONS = 2
    found: list[int] = []
    for _ in range(4):
        found = posts(worker) + found
        start_next()
    return found


def test_what_is_too_old_is_no_longer_materialised_and_its_partition_goes(worker: Worker, aged: list[int]) -> None:
    assert len(partitions()) == 5
    tidy()
    assert rows_by_partition() == {"feed_entries_4": 3 * 6}
    vacuum()
    for _ in range(3):
        keep_up()
    found = partitions()
    assert [partition.name for partition in found] == ["feed_entries_1", "feed_entries_4", "feed_entries_5"]
    assert_adjoining(found)
    assert feed(2) == aged
    newer = posts(worker)
    assert feed(2) == newer + aged
    assert verification.verify().equal


def test_a_feed_with_nothing_too_old_keeps_its_floor(worker: Worker, aged: list[int]) -> None:
    worker.process(UserFollowedFactory(follower_id=77, followee_id=88), PostCreatedFactory(author_id=88))
    tidy()
    assert Feed.objects.get(user_id=77).floor == 0
    assert Feed.objects.get(user_id=2).floor == aged[3]


def test_a_partition_with_a_row_in_it_stays(worker: Worker, aged: list[int]) -> None:
    """Such as one that a new reader's follow has just brought back."""
    tidy()
    vacuum()
    worker.process(UserFollowedFactory(follower_id=99, followee_id=1))
    for _ in range(3):
        keep_up()
    assert len(partitions()) == 5
    assert feed(99) == aged
    tidy()
    assert feed(99) == aged
    assert rows_by_partition() == {"feed_entries_4": 3 * 7}


def test_old_posts_find_a_place_after_their_partition_is_gone(worker: Worker, aged: list[int]) -> None:
    tidy()
    vacuum()
    for _ in range(3):
        keep_up()
    worker.process(UserFollowedFactory(follower_id=99, followee_id=1))
    assert rows_by_partition() == {"feed_entries_1": 9, "feed_entries_4": 3 * 7}
    assert feed(99) == aged
    assert verification.verify().equal


def test_a_rebuilt_feed_holds_nothing_too_old(aged: list[int]) -> None:
    rebuild([2])
    assert set(FeedEntry.objects.filter(user_id=2).values_list("post_id", flat=True)) == set(aged[:3])
    assert feed(2) == aged
    assert verification.verify().equal


# Migration -----------------------------------------------------------------------------------------------------


def test_the_migration_takes_every_row_along_both_ways(worker: Worker) -> None:
    found = posts(worker)
    start_next()
    found = posts(worker) + found
    call_command("migrate", "feeds", "0003", verbosity=0)
    try:
        assert feed(2) == found
        assert rows_by_partition() == {"feed_entries": 6 * 6}
    finally:
        call_command("migrate", "feeds", verbosity=0)
    assert rows_by_partition() == {"feed_entries_1": 6 * 6}
    assert feed(2) == found
    assert verification.verify().equal
