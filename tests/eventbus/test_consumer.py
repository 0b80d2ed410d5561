"""The consumer loop on a real broker: what is committed when, and who gets which record."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from threading import Barrier, Event

import pytest
from confluent_kafka import Consumer, TopicPartition
from django.db import connection, transaction
from pytest_django import Settings

from eventbus import kafka, producer
from eventbus.consume import consumer, offsets
from eventbus.consume.consumer import EventConsumer
from eventbus.consume.lanes import EVENTS_WORTH_A_LANE, Lanes
from eventbus.consume.leaving import Leaving
from eventbus.exceptions import WorkerHangs
from eventbus.models import ConsumerOffset
from eventbus.record import Record
from eventbus.subscription import Turn
from tests.crash import outages
from tests.eventbus import broker, raw_headers
from tests.eventbus.events import counted, eventually
from tests.eventbus.journal import execute
from tests.kafka import running

pytestmark = [pytest.mark.usefixtures("quick_joins"), pytest.mark.django_db(transaction=True)]

needs_apache_kafka = pytest.mark.skipif(
    running.apache_kafka is None,
    reason="needs what the embedded broker lacks: run `make test-kafka`",
)

Handle = Callable[["Member", Sequence[Record]], None]
HandleTurn = Callable[["Member", Turn, Sequence[Record]], None]


class Member:
    """A consumer in a thread of its own, and what its lanes do."""

    def __init__(
        self,
        consumer: EventConsumer,
        leaving: Leaving,
        handle: HandleTurn,
        lanes: int,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.handled: list[bytes | None] = []  # values, in order
        self.turns: list[Turn] = []
        self.consumer = consumer
        self.stop = partial(leaving.begin, "SIGTERM")
        self._handle = handle
        self._run: Future[None] = threads.submit(
            consumer.run, Lanes(lanes, self, Nowhere(), leaving)
        )

    def process(self, records: Sequence[Record], turn: Turn) -> None:
        self.turns.append(turn)
        self._handle(self, turn, records)
        self.handled += [record.value for record in records]

    def result(self) -> None:
        """Wait for the end of the loop; raises what it raised."""
        self._run.result(broker.TIMEOUT)

    def is_in_the_group(self) -> bool:
        return not self._run.done()

    def leave(self) -> None:
        self.stop()
        self.result()


class Nowhere:
    """Where no dead letter comes."""

    def write(self, record: Record, error: BaseException, _delivery: object) -> None:
        raise AssertionError(record) from error


class Group:
    """Members of one consumer group on one topic."""

    def __init__(self, partitions: int, threads: ThreadPoolExecutor) -> None:
        self.topic = broker.create_topic(partitions)
        self.name = broker.unique_name()
        self._partitions = partitions
        self._threads = threads
        self._members: list[Member] = []
        self._reader = Consumer(kafka.client_config() | {"group.id": self.name})

    def join(
        self,
        handle: Handle = lambda _member, _records: None,
        batch_max_events: int = 500,
        batch_max_wait: float = 0.05,
        lanes: int = 1,
        turns: HandleTurn | None = None,
    ) -> Member:
        def take(member: Member, _turn: Turn, records: Sequence[Record]) -> None:
            handle(member, records)

        leaving = Leaving()
        one = EventConsumer(self.topic, self.name, batch_max_events, batch_max_wait, leaving)
        self._members.append(Member(one, leaving, turns or take, lanes, self._threads))
        return self._members[-1]

    def committed(self) -> dict[int, int]:
        """Return the offset that the group has committed in each partition; nothing for where it
        has not.
        """
        asked = [TopicPartition(self.topic, partition) for partition in range(self._partitions)]
        answered = self._reader.committed(asked, timeout=broker.TIMEOUT)
        return {
            partition.partition: partition.offset for partition in answered if partition.offset >= 0
        }

    def commit(self, offsets: dict[int, int]) -> None:
        """Commit in Kafka, as an operator does while no member lives."""
        partitions = [
            TopicPartition(self.topic, number, offset) for number, offset in offsets.items()
        ]
        self._reader.commit(offsets=partitions, asynchronous=False)

    def close(self) -> None:
        for member in self._members:
            member.stop()
        self._reader.close()


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for the members; they leave in the background, and the module ends when all have."""
    with ThreadPoolExecutor(20) as pool:
        yield pool


@pytest.fixture
def often_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have members look often whether PostgreSQL and the topic are as they know them."""
    monkeypatch.setattr(consumer, "CHECK_SECONDS", 0.2)


@pytest.fixture
def group(threads: ThreadPoolExecutor) -> Iterator[Group]:
    """A group on a topic of one partition."""
    with closing(Group(1, threads)) as group:
        yield group


@pytest.fixture
def group_of_two(threads: ThreadPoolExecutor) -> Iterator[Group]:
    """A group on a topic of two partitions."""
    with closing(Group(2, threads)) as group:
        yield group


# murmur2 puts these keys into these two partitions.
KEYS = (b"2", b"1")


def publish(topic: str, *values: bytes, partition: int = 0) -> None:
    for value in values:
        producer.publish_record(topic, KEYS[partition], value)


def test_each_batch_is_committed_after_it_is_handled_also_the_last_one_before_a_stop(
    group: Group,
) -> None:
    def handle(member: Member, records: Sequence[Record]) -> None:
        assert len(records) <= 3
        assert group.committed() == ({0: len(member.handled)} if member.handled else {})
        if records[-1].value == b"6":
            member.stop()

    values = [b"%d" % n for n in range(7)]
    publish(group.topic, *values)
    member = group.join(handle, batch_max_events=3)
    member.result()
    assert member.handled == values
    assert group.committed() == {0: 7}


def test_a_batch_whose_handling_fails_is_not_committed_and_goes_to_the_next(group: Group) -> None:
    def fail(_member: Member, _records: Sequence[Record]) -> None:
        raise RuntimeError("the handler broke")

    publish(group.topic, b"a", b"b")
    with pytest.raises(RuntimeError, match="the handler broke"):
        group.join(fail).result()
    assert group.committed() == {}

    successor = group.join()
    eventually(lambda: successor.handled == [b"a", b"b"])


def test_stop_ends_a_wait_and_leaves_the_batch_to_the_next(group: Group) -> None:
    waiting = Event()

    def wait_for_better_times(member: Member, _records: Sequence[Record]) -> None:
        waiting.set()
        member.turns[-1].wait(3_600)

    publish(group.topic, b"a")
    member = group.join(wait_for_better_times)
    assert waiting.wait(broker.TIMEOUT)
    member.leave()
    assert member.handled == []
    assert group.committed() == {}


def test_a_member_that_waits_longer_than_the_poll_interval_stays_and_misses_nothing(
    group: Group, settings: Settings
) -> None:
    settings.KAFKA_MAX_POLL_INTERVAL_MS = settings.KAFKA_SESSION_TIMEOUT_MS
    still_ours: list[bool] = []

    def wait_once(member: Member, records: Sequence[Record]) -> None:
        if not still_ours:
            publish(group.topic, b"c", b"d")
            member.turns[-1].wait(settings.KAFKA_MAX_POLL_INTERVAL_MS / 1000 + 0.3)
            publish(group.topic, b"e")
            still_ours.extend(member.turns[-1].still_ours(record) for record in records)

    publish(group.topic, b"a", b"b")
    member = group.join(wait_once)
    eventually(lambda: group.committed() == {0: 5})
    assert member.handled == [b"a", b"b", b"c", b"d", b"e"]
    assert set(still_ours) == {True}


def test_members_share_the_partitions_and_one_takes_over_even_while_it_waits(
    group_of_two: Group,
) -> None:
    group = group_of_two
    published = 0

    def publish_to_both() -> None:
        nonlocal published
        published += 1
        publish(group.topic, b"left %d" % published, partition=0)
        publish(group.topic, b"right %d" % published, partition=1)

    def see_the_other_off(member: Member, _records: Sequence[Record]) -> None:
        if second.handled and second.is_in_the_group():
            second.leave()
            while member.consumer.partitions() != [0, 1]:
                member.turns[-1].wait(0.2)

    def both_worked_and_one_left() -> bool:
        publish_to_both()
        return bool(second.handled) and not second.is_in_the_group()

    second = group.join()
    first = group.join(see_the_other_off)
    eventually(both_worked_and_one_left)
    publish_to_both()
    eventually(lambda: group.committed() == {0: published, 1: published})
    assert len({*first.handled, *second.handled}) == 2 * published


def test_a_partition_that_leaves_during_a_wait_is_read_again_when_it_comes_back(
    group_of_two: Group,
) -> None:
    group = group_of_two
    others: list[Member] = []

    def wait_until_one_partition_has_left(member: Member, _records: Sequence[Record]) -> None:
        if not others:
            others.append(group.join())
            while len(member.consumer.partitions()) == 2:
                member.turns[-1].wait(0.2)

    publish(group.topic, b"left 1", partition=0)
    publish(group.topic, b"right 1", partition=1)
    member = group.join(wait_until_one_partition_has_left)
    eventually(lambda: others and len(others[0].consumer.partitions()) == 1)
    others[0].leave()
    eventually(lambda: member.consumer.partitions() == [0, 1])
    publish(group.topic, b"left 2", partition=0)
    publish(group.topic, b"right 2", partition=1)
    eventually(lambda: {b"left 2", b"right 2"} <= set(member.handled))


def test_a_partition_that_left_is_not_committed_for_a_batch_from_before_even_if_it_came_back(
    group_of_two: Group,
) -> None:
    group = group_of_two
    others: list[Member] = []
    seen_by_the_other: list[bytes | None] = []
    not_ours: list[bytes | None] = []

    def see_and_leave_uncommitted(member: Member, records: Sequence[Record]) -> None:
        seen_by_the_other.extend(record.value for record in records)
        member.stop()
        member.turns[-1].wait(0)

    def hold_while_another_comes_and_goes(member: Member, records: Sequence[Record]) -> None:
        if not others:
            others.append(group.join(see_and_leave_uncommitted))
            while others[0].is_in_the_group() or member.consumer.partitions() != [0, 1]:
                member.turns[-1].wait(0.2)
            not_ours.extend(
                record.value for record in records if not member.turns[-1].still_ours(record)
            )

    publish(group.topic, b"left", partition=0)
    publish(group.topic, b"right", partition=1)
    member = group.join(hold_while_another_comes_and_goes, batch_max_events=2, batch_max_wait=0.5)
    eventually(lambda: group.committed() == {0: 1, 1: 1})
    assert seen_by_the_other == not_ours
    assert len(not_ours) == 1
    assert sorted(map(str, member.handled)) == sorted(map(str, [b"left", b"right", *not_ours]))


# Offsets in PostgreSQL, beside Kafka's ------------------------------------------------------------


def kept(group: Group) -> dict[int, int]:
    """Return the offsets that PostgreSQL keeps for the group."""
    rows = ConsumerOffset.objects.filter(group=group.name, topic=group.topic)
    return dict(rows.values_list("partition", "next_offset"))


def keep(group: Group, offset: int) -> None:
    ConsumerOffset.objects.filter(group=group.name).update(next_offset=offset)


def rewinds(group: Group, reason: str) -> float:
    return counted(
        "kafka_consumer_rewinds_total", topic=group.topic, group=group.name, reason=reason
    )


def values(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def work_off(group: Group, *records: bytes) -> Member:
    """Publish records, have a member process them and leave."""
    before = sum(group.committed().values())
    publish(group.topic, *records)
    member = group.join()
    eventually(lambda: sum(group.committed().values()) == before + len(records))
    member.leave()
    return member


def test_postgresql_keeps_the_offset_before_kafka_does(group: Group) -> None:
    ahead: list[bool] = []

    def look(_member: Member, _records: Sequence[Record]) -> None:
        ahead.append(kept(group).get(0, 0) >= group.committed().get(0, 0))

    publish(group.topic, *values(5))
    member = group.join(look, batch_max_events=1)
    eventually(lambda: group.committed() == {0: 5})
    assert kept(group) == {0: 5}
    assert ahead == [True] * 5
    member.leave()


def test_a_database_that_went_back_takes_the_group_back_with_it(group: Group) -> None:
    work_off(group, *values(10))
    keep(group, 4)
    successor = group.join()
    eventually(lambda: kept(group) == {0: 10})
    assert successor.handled == values(6, start=4)
    assert rewinds(group, "database_behind") == 1


def test_a_worker_notices_by_itself_that_the_database_went_back(
    group: Group, often_checked: None
) -> None:
    member = group.join()
    publish(group.topic, *values(10))
    eventually(lambda: kept(group) == {0: 10})
    keep(group, 4)
    eventually(lambda: member.handled == values(10) + values(6, start=4))
    eventually(lambda: kept(group) == group.committed() == {0: 10})
    assert member.is_in_the_group()


def test_a_batch_whose_database_went_back_meanwhile_is_committed_nowhere(group: Group) -> None:
    went_back: list[bool] = []

    def go_back(_member: Member, records: Sequence[Record]) -> None:
        if records[-1].offset == 9 and not went_back:
            went_back.append(True)
            keep(group, 2)

    work_off(group, *values(5))
    publish(group.topic, *values(5, start=5))
    member = group.join(go_back, batch_max_wait=0.5)
    eventually(lambda: kept(group) == {0: 10})
    assert member.handled == values(5, start=5) + values(8, start=2)


@outages.needs_embedded_postgres
def test_a_batch_during_which_the_server_was_another_one_comes_again(group: Group) -> None:
    """Its effects were committed by a server that is gone: the one that answers now may lack
    them.
    """
    restarted: list[bool] = []

    def restart(_member: Member, _records: Sequence[Record]) -> None:
        if not restarted:
            restarted.append(True)
            outages.postgres.stop()
            outages.postgres.start()

    publish(group.topic, *values(3))
    member = group.join(restart, batch_max_wait=0.5)
    eventually(lambda: group.committed() == {0: 3})
    assert member.handled == 2 * values(3)


def test_no_lane_goes_on_with_a_session_from_before_the_server_was_found(
    group: Group, threads: ThreadPoolExecutor
) -> None:
    """It may be one with the server before, which was not stopped when another took its place."""

    def pid_of_an_idle_session() -> int:
        with closing(connection):
            [(pid,)] = execute("SELECT pg_backend_pid()")
            return int(pid)

    def lives(pid: int) -> bool:
        return bool(execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))

    old = threads.submit(pid_of_an_idle_session).result()
    publish(group.topic, *values(1))
    assert lives(old)
    member = group.join()
    eventually(lambda: member.handled == values(1))
    eventually(lambda: not lives(old))


def test_a_kafka_offset_below_postgresqls_counts_too(group: Group) -> None:
    """As set back on purpose, or by a crash between the two."""
    work_off(group, *values(10))
    group.commit({0: 7})
    member = group.join()
    eventually(lambda: member.handled == values(3, start=7))
    eventually(lambda: group.committed() == {0: 10})
    assert rewinds(group, "database_behind") == 0


def test_a_group_from_before_the_table_goes_on_where_kafka_has_it(group: Group) -> None:
    work_off(group, *values(10))
    ConsumerOffset.objects.all().delete()
    publish(group.topic, b"10")
    member = group.join()
    eventually(lambda: kept(group) == {0: 11})
    assert member.handled == [b"10"]


def test_a_database_from_before_the_first_worker_has_everything_processed_again(
    group: Group,
) -> None:
    """As `migrate` has made it, and a copy of then has it: Kafka's offsets are another database's."""
    work_off(group, *values(10))
    ConsumerOffset.objects.all().delete()
    offsets.begin(group.name, group.topic, 1)
    successor = group.join()
    eventually(lambda: kept(group) == {0: 10})
    assert successor.handled == values(10)
    assert rewinds(group, "database_behind") == 1


def test_what_kafka_has_forgotten_postgresql_knows(group: Group) -> None:
    work_off(group, *values(10))
    publish(group.topic, b"10")
    forgotten, group.name = group.name, broker.unique_name()
    ConsumerOffset.objects.filter(group=forgotten).update(group=group.name)
    member = group.join()
    eventually(lambda: member.handled == [b"10"])


def test_postgresql_that_is_away_at_the_start_is_waited_for(group: Group) -> None:
    work_off(group, *values(3))
    publish(group.topic, b"3")
    with transaction.atomic():
        execute("LOCK TABLE consumer_offsets")
        execute("SET LOCAL lock_timeout = 0")
        member = group.join()
        eventually(lambda: member.consumer.partitions() == [0])
        time.sleep(0.5)
        assert member.handled == []
    eventually(lambda: member.handled == [b"3"])


# Topics that are made anew, and logs that are shorter ---------------------------------------------


def test_a_topic_made_anew_is_read_from_its_beginning_and_told(group: Group) -> None:
    work_off(group, *values(12))
    broker.recreate_topic(group.topic)
    publish(group.topic, *values(60))  # more than the group had read of the other
    member = group.join()
    eventually(lambda: kept(group) == {0: 60})
    assert member.handled == values(60)
    assert rewinds(group, "topic_recreated") == 1


@needs_apache_kafka
def test_a_topic_made_anew_and_refilled_under_a_running_worker_is_read_from_its_beginning(
    group: Group, often_checked: None
) -> None:
    member = group.join()
    publish(group.topic, *values(12))
    eventually(lambda: kept(group) == {0: 12})
    broker.recreate_topic(group.topic)
    publish(group.topic, *[b"new %d" % number for number in range(60)])
    eventually(lambda: set(member.handled) >= {b"new %d" % number for number in range(60)})
    eventually(lambda: kept(group) == {0: 60})
    assert member.is_in_the_group()
    assert rewinds(group, "topic_recreated") == 1


@needs_apache_kafka
def test_what_retention_took_before_the_group_had_read_it_is_told_as_a_loss(group: Group) -> None:
    work_off(group, *values(3))
    publish(group.topic, *values(7, start=3))
    broker.delete_records(group.topic, before=8)
    lost = counted("kafka_records_lost_total", topic=group.topic, group=group.name)
    member = group.join()
    eventually(lambda: group.committed() == {0: 10})
    assert member.handled == values(2, start=8)
    assert counted("kafka_records_lost_total", topic=group.topic, group=group.name) == lost + 5


@needs_apache_kafka
def test_a_running_worker_that_retention_overtakes_tells_it_and_goes_on(group: Group) -> None:
    overtaken: list[bool] = []

    def be_overtaken(_member: Member, records: Sequence[Record]) -> None:
        if not overtaken:
            overtaken.append(True)
            # More than a consumer fetches ahead.
            publish(group.topic, *[b"%d" % number + 500_000 * b"." for number in range(1, 150)])
            broker.delete_records(group.topic, before=148)

    publish(group.topic, b"0")
    member = group.join(be_overtaken, batch_max_events=1)
    eventually(lambda: group.committed() == {0: 150}, seconds=60)
    lost = counted("kafka_records_lost_total", topic=group.topic, group=group.name)
    assert lost == 150 - len(member.handled) > 0


@needs_apache_kafka
def test_a_log_that_is_shorter_than_the_group_has_read_is_read_from_its_beginning(
    group: Group,
) -> None:
    """As after an election of a replica that lagged."""
    work_off(group, *values(3))
    keep(group, 500)
    group.commit({0: 500})
    member = group.join()
    eventually(lambda: member.handled == values(3))
    eventually(lambda: kept(group) == group.committed() == {0: 3})
    assert rewinds(group, "log_shorter") == 1


# Two lanes ----------------------------------------------------------------------------------------


def test_a_partition_that_is_revoked_while_two_lanes_work_is_not_committed_and_the_other_is(
    group_of_two: Group, settings: Settings
) -> None:
    """Neither lane waits: both go from transaction to transaction for longer than Kafka would wait
    for a poll.
    """
    settings.KAFKA_MAX_POLL_INTERVAL_MS = max(4_000, settings.KAFKA_SESSION_TIMEOUT_MS)
    group = group_of_two
    others: list[Member] = []
    left: dict[int, set[bool]] = {
        0: set(),
        1: set(),
    }  # by partition, whether it was ours at the end
    both = Barrier(2)

    def work_until_one_partition_has_left(
        member: Member, turn: Turn, records: Sequence[Record]
    ) -> None:
        if member is not first or (others and others[0].handled):
            return
        if both.wait(broker.TIMEOUT) == 0:
            others.append(group.join())
        until = time.monotonic() + 1.2 * settings.KAFKA_MAX_POLL_INTERVAL_MS / 1_000
        while time.monotonic() < until or len(member.consumer.partitions()) == 2:
            assert not turn.stopping()
            time.sleep(0.05)
        left[records[0].partition].add(turn.still_ours(records[0]))

    for number in range(EVENTS_WORTH_A_LANE):
        publish(group.topic, b"left %d" % number, partition=0)
        publish(group.topic, b"right %d" % number, partition=1)
    first = group.join(turns=work_until_one_partition_has_left, lanes=2, batch_max_wait=1.0)
    eventually(lambda: group.committed() == {0: EVENTS_WORTH_A_LANE, 1: EVENTS_WORTH_A_LANE})
    assert sorted(map(sorted, left.values())) == [[False], [True]]
    [revoked] = [partition for partition, ours in left.items() if ours == {False}]
    name = (b"left", b"right")[revoked]
    assert others[0].handled == [b"%s %d" % (name, number) for number in range(EVENTS_WORTH_A_LANE)]
    assert first.is_in_the_group()


def test_a_lane_that_hangs_while_another_goes_on_ends_the_worker(
    group: Group, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before that, its silence has Kafka give the partitions to others."""
    settings.KAFKA_MAX_POLL_INTERVAL_MS = settings.KAFKA_SESSION_TIMEOUT_MS
    monkeypatch.setattr(consumer, "HANG_SECONDS", 3.0)
    hanging = Event()

    def hang_in_one_lane(member: Member, turn: Turn, _records: Sequence[Record]) -> None:
        if member is not first:
            return
        if turn.still_ours(_records[0]) and _records[0].key == b"1":
            hanging.wait(2 * broker.TIMEOUT)
        while not turn.stopping():
            time.sleep(0.05)

    for number in range(EVENTS_WORTH_A_LANE):
        producer.publish_record(group.topic, b"1", b"hangs %d" % number)
        producer.publish_record(group.topic, b"2", b"goes on %d" % number)
    first = group.join(turns=hang_in_one_lane, lanes=2, batch_max_wait=1.0)
    eventually(lambda: len(first.turns) == 2)
    second = group.join()
    try:
        eventually(lambda: len(second.handled) == 2 * EVENTS_WORTH_A_LANE)
        with pytest.raises(WorkerHangs):
            first.result()
    finally:
        hanging.set()


def test_a_header_name_that_is_no_text_costs_only_the_headers_of_that_record(group: Group) -> None:
    good = [b"%d" % n for n in range(200)]  # CPython treats a call otherwise once it was made often
    publish(group.topic, *good)
    raw_headers.publish(group.topic, b"1", b"bad", [(b"fine", b"1"), (b"\xff\xfe", b"2")])
    raw_headers.publish(group.topic, b"1", b"last", [(b"fine", b"1")])
    handled: list[Record] = []
    member = group.join(lambda _member, records: handled.extend(records))
    eventually(lambda: group.committed() == {0: 202} or not member.is_in_the_group())
    member.leave()
    assert [record.value for record in handled] == [*good, b"bad", b"last"]
    bad, last = handled[200:]
    assert (bad.key, list(bad.headers), list(last.headers)) == (b"1", [], [("fine", b"1")])
    assert "not UTF-8: 'utf-8' codec can't decode byte 0xff" in bad.headers_error
    assert last.headers_error == ""


def test_the_number_of_partitions_a_member_has_is_exported(group_of_two: Group) -> None:
    labels = {"topic": group_of_two.topic, "group": group_of_two.name}
    member = group_of_two.join()
    eventually(lambda: counted("kafka_consumer_assigned_partitions", **labels) == 2)
    member.leave()
    assert counted("kafka_consumer_assigned_partitions", **labels) == 0
