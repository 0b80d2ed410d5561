"""`feed_entries` by age: partitions are made ahead of time, the oldest go, and no feed and no
reader notices.
"""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, OperationalError, connection, transaction
from django.db.models.functions import Now
from pytest_django import Settings

from eventbus import retry
from eventbus.ids.snowflake import EPOCH_MS, compose, milliseconds_of
from feeds import fanout, partitions, verification
from feeds.models import Feed, FeedEntry, Horizon
from feeds.partitions import (
    AHEAD,
    FIRST_MS,
    LONGEST_MS,
    SHORTEST_MS,
    Layout,
    Partition,
    keep_up,
    kept,
    layout,
)
from feeds.rebuild import rebuild
from feeds.timeline import Reader
from posts.events import PostCreated
from posts.models import Post
from posts.pagination import START
from tests.eventbus.events import counted, eventually
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    follow_all,
    next_id,
)
from tests.feeds.elsewhere import elsewhere
from tests.feeds.model import expected_feed, feed, history
from tests.feeds.partitioning import lay_out, partitions_undone, rows_by_partition
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

READERS = range(2, 7)
MINUTE = 60_000


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


def names() -> list[str]:
    return [partition.name for partition in partitions.partitions()]


def waiting_for_tables() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE locktype = 'virtualxid' AND NOT granted")
        return bool(cursor.rowcount)


# Made ahead of time -------------------------------------------------------------------------------


def test_a_new_database_has_a_place_for_every_id_up_to_some_hours_from_now() -> None:
    now = partitions.first_id_of(layout().now_ms)
    first, *ahead = partitions.partitions()
    assert first.start == 0
    assert [partition.start for partition in ahead] == [
        partition.end for partition in [first, *ahead][:-1]
    ]
    assert len([partition for partition in ahead if partition.start > now]) == AHEAD


def test_when_a_partition_begins_another_is_made_behind_the_last() -> None:
    end = partitions.partitions()[1].start
    for later in range(1, 6):
        now_ms = milliseconds_of(end) + later * 70 * MINUTE
        keep_up(now_ms)
        found = layout(now_ms)
        assert found.settled
        assert len(found.partitions) - len(found.begun) == AHEAD
        assert all(
            older.end == newer.start for older, newer in itertools.pairwise(found.partitions)
        )
    assert counted("feed_entries_partitions_ahead_seconds") > 0


def test_after_an_outage_one_partition_is_for_all_the_time_that_it_took() -> None:
    end_ms = milliseconds_of(partitions.partitions()[-1].end)
    now_ms = end_ms + 90 * 24 * 60 * MINUTE
    keep_up(now_ms)
    gap, *ahead = partitions.partitions()[1 + AHEAD :]
    assert milliseconds_of(gap.start) == end_ms
    assert milliseconds_of(gap.end) > now_ms
    assert len(ahead) == AHEAD


def test_a_partition_is_like_the_table_and_belongs_to_its_owner(worker: Worker) -> None:
    keep_up(milliseconds_of(partitions.partitions()[-1].start) + 1)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT reloptions, relowner FROM pg_class WHERE relname ~ '^feed_entries_\\d+$'"
        )
        [(options, owner)] = cursor.fetchall()
        cursor.execute("SELECT relowner FROM pg_class WHERE relname = 'feed_entries'")
        assert cursor.fetchone() == (owner,)
    assert "autovacuum_vacuum_insert_scale_factor=0.05" in options


def at_rate(settings: Settings, *rows: int, minutes: int = 10, now: int = 0) -> int:
    """Return how many minutes the next partition is for, after ones of `minutes` with so many
    rows.
    """
    settings.FEED_PARTITION_ROWS = 100_000
    bounds = [compose(EPOCH_MS + n * minutes * MINUTE, 0, 0) for n in range(1, len(rows) + 2)]
    found = [
        Partition("p", start, end, count)
        for start, end, count in zip(bounds, bounds[1:], rows, strict=False)
    ]
    now_ms = EPOCH_MS + (len(rows) + 1) * minutes * MINUTE - 1 - now * MINUTE
    return round(
        Layout([Partition("p", 0, bounds[0], 10**9), *found], now_ms, 0, [], "").next_ms / MINUTE
    )


def test_the_next_partition_is_as_long_as_the_present_rate_fills_it(settings: Settings) -> None:
    assert at_rate(settings) == FIRST_MS / MINUTE
    assert at_rate(settings, 0, now=9) == FIRST_MS / MINUTE  # that one has just begun
    assert at_rate(settings, 100_000) == 10
    assert at_rate(settings, 200_000) == 5
    assert at_rate(settings, 100_000, now=5) == 5  # half of the time is over
    assert at_rate(settings, 50_000_000) == SHORTEST_MS / MINUTE
    assert at_rate(settings, 70_000) == 14
    assert at_rate(settings, 1) == at_rate(settings, 0) == 20  # twice as long as the last
    assert at_rate(settings, 0, minutes=2_000) == LONGEST_MS / MINUTE
    assert at_rate(settings, 100_000, 0, 0) == 10  # a lull
    assert at_rate(settings, 100_000, 0, 0, 0, 0) == 20


class WorkerThatWaitsForAPartition(Worker):
    """Its third wait ends when somebody has made the next partition."""

    def wait(self, seconds: float) -> None:
        super().wait(seconds)
        if self.waits == 3:
            keep_up(milliseconds_of(partitions.partitions()[-1].end) - 1)


def test_a_post_ahead_of_all_partitions_waits_until_there_is_one(worker: Worker) -> None:
    end = partitions.partitions()[-1].end
    late = PostCreatedFactory(author_id=1, post_id=end)
    waiting = WorkerThatWaitsForAPartition()
    waiting.process(late)
    assert waiting.waits == 3
    assert waiting.dead_letters == []
    assert feed(2) == [end]
    assert rows_by_partition() == {names()[AHEAD + 1]: 6}


def test_a_missing_partition_is_transient_and_a_broken_constraint_is_not() -> None:
    with pytest.raises(IntegrityError, match="no partition") as missing, transaction.atomic():
        FeedEntry.objects.create(user_id=1, post_id=2**62, author_id=1)
    with pytest.raises(IntegrityError, match="single_row") as broken, transaction.atomic():
        Horizon.objects.create(id=2)
    assert (retry.is_transient(missing.value), retry.is_transient(broken.value)) == (True, False)


# One at a time, and nobody waits ------------------------------------------------------------------


class Lanes:
    """Transactions that write entries and stay open for a while, so many at a time, and a reader
    beside them.
    """

    def __init__(self, seconds: float, first_post: int) -> None:
        self.slowest_read = 0.0
        self._posts = itertools.count(first_post)
        self._seconds = seconds
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=[user]) for user in range(100, 104)
        ]
        self._threads.append(threading.Thread(target=self._read))

    def __enter__(self) -> "Lanes":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _write(self, user: int) -> None:
        while not self._stopped.is_set():
            with transaction.atomic():
                FeedEntry.objects.create(user_id=user, post_id=next(self._posts), author_id=1)
                self._stopped.wait(self._seconds)
        connection.close()

    def _read(self) -> None:
        while not self._stopped.is_set():
            started = time.monotonic()
            Reader(2).read(START, 20)
            self.slowest_read = max(self.slowest_read, time.monotonic() - started)
        connection.close()


def test_beside_long_transactions_partitions_are_made_and_dropped_and_readers_do_not_wait(
    worker: Worker, settings: Settings
) -> None:
    settings.FEED_PARTITIONS = 2
    bounds = [compose(EPOCH_MS + hours * 60 * MINUTE, 0, 0) for hours in (20_000, 20_001, 20_002)]
    lay_out(0, *bounds)
    written = posts(worker)
    with Lanes(seconds=0.5, first_post=bounds[1]) as lanes:
        keep_up(EPOCH_MS + 20_003 * 60 * MINUTE)
    assert "feed_entries_1" not in names()
    assert len(names()) == 2 + AHEAD
    # A transaction is open at any time: who needed the table for itself would keep readers for all
    # of them.
    assert lanes.slowest_read < 0.4
    assert feed(2) == written


def test_beside_a_dump_partitions_are_made_and_the_old_one_goes_when_it_has_ended(
    aged: list[int], settings: Settings
) -> None:
    with elsewhere() as do, connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '300ms'")
        held = threading.Event()

        def dump() -> None:
            with transaction.atomic(), connection.cursor() as other:
                other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                other.execute("LOCK TABLE feed_entries IN ACCESS SHARE MODE")
                other.execute("SELECT count(*) FROM feed_entries")
                held.wait(20)
                other.execute("SELECT count(*) FROM feed_entries")
                assert other.fetchone() == (12 * 6,)

        dumping = do(dump)
        eventually(lambda: somebody_reads_all())
        try:
            for _ in range(2):
                with pytest.raises(OperationalError, match="lock timeout"):
                    keep_up(NOW_MS)
                Horizon.objects.update(keeper_due_at=Now())
            assert len(layout(NOW_MS).partitions) - len(layout(NOW_MS).begun) == AHEAD
            assert feed(2) == aged
        finally:
            held.set()
            dumping.result(20)
        keep_up(NOW_MS)
        cursor.execute("RESET lock_timeout")
    assert names()[0] == "feed_entries_3"
    assert feed(2) == aged


def somebody_reads_all() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_locks WHERE relation = 'feed_entries'::regclass AND mode = 'AccessShareLock' AND granted "
            "AND pid <> pg_backend_pid()"
        )
        return bool(cursor.rowcount)


def test_one_process_at_a_time_keeps_them_and_after_a_failure_all_wait(aged: list[int]) -> None:
    before = names()
    Horizon.objects.update_or_create(id=1, defaults={"keeper_due_at": "2100-01-01T00:00:00Z"})
    keep_up(NOW_MS)
    assert names() == before
    Horizon.objects.update(keeper_due_at=Now())
    with elsewhere() as do, transaction.atomic():
        Horizon.objects.select_for_update().get()
        do(keep_up, NOW_MS).result(10)
        assert names() == before
    keep_up(NOW_MS)
    assert names() != before


def test_two_who_make_the_same_partition_leave_one(aged: list[int]) -> None:
    with elsewhere() as do:
        with transaction.atomic():
            partitions.make_ahead(NOW_MS)
            other = do(partitions.make_ahead, NOW_MS)
            eventually(lambda: not other.running() or somebody_waits_for_a_name())
        with pytest.raises(DatabaseError):
            other.result(10)
    assert len(layout(NOW_MS).partitions) - len(layout(NOW_MS).begun) == AHEAD


def somebody_waits_for_a_name() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE NOT granted")
        return bool(cursor.rowcount)


def test_partitions_are_there_before_a_worker_consumes_and_while_it_does() -> None:
    lay_out(0, next_id())
    with kept():
        assert len(names()) == 1 + 1 + AHEAD
        newest = names()[-1]
        partitions.drop(newest)
        Horizon.objects.update(keeper_due_at=Now())
        eventually(lambda: newest in names())


def test_who_may_not_make_partitions_says_so_and_goes_on(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(0, next_id())
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        try:
            with kept():
                pass
        finally:
            cursor.execute("SET default_transaction_read_only = off")
    assert "partitions_not_kept" in caplog.text
    assert names() == ["feed_entries_1"]


# An old partition ---------------------------------------------------------------------------------

NOW_MS = 0


@pytest.fixture
def aged(worker: Worker, settings: Settings) -> list[int]:
    """Four partitions of three posts each, of which only two are to be kept; returns the posts,
    newest first.
    """
    global NOW_MS
    settings.FEED_PARTITIONS = 2
    facts = [PostCreatedFactory(author_id=1) for _ in range(12)]
    bounds = [fact.post_id for fact in facts[3::3]]
    NOW_MS = milliseconds_of(next_id())
    lay_out(0, *bounds, compose(NOW_MS + 10 * MINUTE, 0, 0))
    worker.process(*facts)
    return [fact.post_id for fact in reversed(facts)]


def test_what_is_too_old_goes_with_its_partition_whatever_it_holds(
    worker: Worker, aged: list[int]
) -> None:
    assert rows_by_partition() == {f"feed_entries_{n}": 3 * 6 for n in range(1, 5)}
    keep_up(NOW_MS)
    assert rows_by_partition() == {"feed_entries_3": 3 * 6, "feed_entries_4": 3 * 6}
    assert aged[6] <= Horizon.objects.get().post_id < aged[5]
    assert feed(2) == aged
    newer = posts(worker)
    assert feed(2) == newer + aged
    assert set(Feed.objects.values_list("floor", flat=True)) == {0}
    assert verification.verify().equal


def test_nothing_at_or_below_the_horizon_is_materialised_again(
    worker: Worker, aged: list[int]
) -> None:
    old = PostCreatedFactory(author_id=1, post_id=aged[-1] + 1)
    keep_up(NOW_MS)
    follow_all([99], followee=1)
    rebuild([2])
    worker.process(old)
    assert rows_by_partition() == {"feed_entries_3": 3 * 7, "feed_entries_4": 3 * 7}
    expected = [*aged[:-1], old.post_id, aged[-1]]
    assert feed(2) == feed(99) == feed(1) == expected
    worker.process(PostDeletedFactory(author_id=1, post_id=old.post_id), *unfollows(99))
    assert (feed(2), feed(99)) == (aged, [])
    assert verification.verify().equal
    assert worker.dead_letters == []


def unfollows(*users: int) -> list[object]:
    return [UserUnfollowedFactory(follower_id=user, followee_id=1) for user in users]


def test_a_large_post_below_the_horizon_is_not_delivered(
    worker: Worker, aged: list[int], settings: Settings
) -> None:
    keep_up(NOW_MS)
    settings.FEED_BATCH_MAX_ROWS = 2
    old = PostCreatedFactory(author_id=1, post_id=aged[-1] + 1)
    worker.process(old)
    assert not FeedEntry.objects.filter(post_id=old.post_id).exists()
    assert old.post_id in feed(2)


@pytest.mark.parametrize("statement", range(1, 16))
def test_whoever_dies_at_any_statement_leaves_right_feeds_and_the_next_goes_on(
    worker: Worker, aged: list[int], statement: int
) -> None:
    done = 0

    def die(execute: object, sql: str, params: object, many: bool, context: object) -> object:
        nonlocal done
        done += 1
        if done > statement:
            raise ConnectionResetError("killed")
        return execute(sql, params, many, context)  # type: ignore[operator]

    try:
        with connection.execute_wrapper(die):
            keep_up(NOW_MS)
    except ConnectionResetError:
        pass
    assert feed(2) == aged
    newer = posts(worker)
    assert feed(2) == newer + aged
    assert verification.verify().equal
    Horizon.objects.update(keeper_due_at=Now())
    keep_up(NOW_MS)
    assert names()[0] == "feed_entries_3"
    assert layout(NOW_MS).settled
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_class WHERE relname IN ('feed_entries_1', 'feed_entries_2')"
        )
        assert cursor.fetchone() == (0,)


def test_a_horizon_that_was_lost_is_found_again(worker: Worker, aged: list[int]) -> None:
    keep_up(NOW_MS)
    horizon = Horizon.objects.get().post_id
    Horizon.objects.all().delete()
    keep_up(NOW_MS)
    assert Horizon.objects.get().post_id == horizon
    assert feed(2) == aged


def test_feeds_are_right_across_partitions_whatever_happens_to_old_posts(worker: Worker) -> None:
    """Deletions, unfollows, follows and redelivered events reach back into partitions of long
    ago.
    """
    steps = [("follow", reader, author) for reader in range(1, 5) for author in range(5, 9)]
    steps += [("post", author, 0) for author in range(5, 9) for _ in range(8)]
    facts = history(steps, first_user=100)
    old = [fact for fact in facts if isinstance(fact, PostCreated)]
    lay_out(0, *(post.post_id for post in old[7::8]), partitions.partitions()[-1].end)
    worker.process(*facts)
    facts += [
        PostDeletedFactory(post_id=post.post_id, author_id=post.author_id) for post in old[::5]
    ]
    facts.append(UserUnfollowedFactory(follower_id=101, followee_id=105))
    facts.append(UserFollowedFactory(follower_id=109, followee_id=106))
    worker.process(*facts)
    assert len(rows_by_partition()) == 5
    for reader in (101, 102, 103, 104, 109):
        assert feed(reader) == expected_feed(facts, reader)
    assert worker.dead_letters == []
    assert verification.verify().equal


@pytest.mark.parametrize("few", [True, False])
def test_pages_are_whole_when_readers_begin_with_the_newest_partitions(
    worker: Worker, few: bool
) -> None:
    facts = [PostCreatedFactory(author_id=1) for _ in range(24)]
    ids = [fact.post_id for fact in facts]
    lay_out(0, *ids[2::2], partitions.partitions()[-1].end)
    worker.process(*facts)
    Horizon.objects.update_or_create(id=1, defaults={"starts": [0, *ids[2::2]] if few else []})
    assert feed(2) == ids[::-1]
    assert feed(2) == ids[::-1]
    # A row without a post, as while a deletion is being withdrawn.
    Post.objects.filter(id__in=ids[5:15]).update(deleted_event_id=1)
    assert feed(2) == [post for post in reversed(ids) if post not in ids[5:15]]


# By hand ------------------------------------------------------------------------------------------


def test_the_command_keeps_them_and_shows_all(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    [newest, *_] = posts(worker)
    lay_out(0, newest + 1)
    call_command("keep_partitions")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("feed_entries_1: posts from 2024-01-01 00:00:00Z to 2024-01-01 ")
    assert first.endswith(", 0 rows")
    assert last == "Nothing is materialised up to post 0."
    assert len(names()) == 1 + 1 + AHEAD


def test_the_command_says_why_not_all_was_done(worker: Worker, aged: list[int]) -> None:
    lay_out(0, next_id())
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE feed_entries_2 ()")
        with pytest.raises(
            CommandError, match=r"Not all was done, see the runbook: .* already exists"
        ):
            call_command("keep_partitions")
        cursor.execute("DROP TABLE feed_entries_2")


# Migration ----------------------------------------------------------------------------------------


def test_the_migration_keeps_rows_grants_and_owners_both_ways(
    worker: Worker, aged: list[int]
) -> None:
    keep_up(NOW_MS)
    rows = rows_by_partition()
    with connection.cursor() as cursor:
        cursor.execute("GRANT SELECT ON feed_entries, feed_entries_3 TO pg_monitor")
        call_command("migrate", "feeds", "0004", verbosity=0)
        try:
            assert rows_by_partition() == rows
            cursor.execute(
                "INSERT INTO posts (id, author_id, content, created_at) VALUES (%s, 1, 'x', now())",
                [2**61],
            )
            cursor.execute("INSERT INTO feed_entries VALUES (2, %s, 1)", [2**61])
        finally:
            call_command("migrate", "feeds", verbosity=0)
        assert rows_by_partition() == rows
        privileges = "SELECT has_table_privilege('pg_monitor', name, 'SELECT') FROM unnest(%s::text[]) AS name"
        cursor.execute(privileges, [list(rows)])
        assert cursor.fetchall() == [(True,), (False,)]
        cursor.execute("REVOKE SELECT ON feed_entries FROM pg_monitor")
    assert len(layout().partitions) - len(layout().begun) == AHEAD
    assert feed(2) == [2**61, *aged]
    keep_up()
    assert feed(2) == [2**61, *aged]
    assert fanout.follower_counts([1]) == {1: 5}
    assert verification.verify().equal


def test_the_migration_takes_every_row_along_from_and_to_one_table(worker: Worker) -> None:
    found = posts(worker)
    call_command("migrate", "feeds", "0003", verbosity=0)
    try:
        assert rows_by_partition() == {"feed_entries": 3 * 6}
    finally:
        call_command("migrate", "feeds", verbosity=0)
    assert rows_by_partition() == {"feed_entries_1": 3 * 6}
    assert feed(2) == found
    assert verification.verify().equal
