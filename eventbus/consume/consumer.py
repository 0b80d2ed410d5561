"""The consumer loop: poll → batch → process → commit offsets, until told to stop.

Offsets are committed explicitly and only after the effects are committed in PostgreSQL: first
there, then in Kafka. That order alone loses nothing; `processed_events` makes the redelivery it
allows harmless. Where to start is for `eventbus.consume.positions` to find.
"""

import itertools
import time
from collections.abc import Callable, Collection, Iterable
from typing import ParamSpec, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from django import db
from django.conf import settings
from django.db import close_old_connections

from eventbus import identity, kafka, metrics, retry
from eventbus.consume.lanes import Batch, Lanes
from eventbus.consume.leaving import Leaving
from eventbus.consume.positions import Positions
from eventbus.database.current import connection
from eventbus.database.deadline import each_answer_within
from eventbus.exceptions import WorkerHangs, WorkerStopping
from eventbus.record import Record
from eventbus.subscription import Membership
from eventbus.telemetry import correlation, tracing

POLL_SECONDS = 1.0
# Before there is anything to poll for, so that `_settle` soon hears of the first partitions.
JOIN_POLL_SECONDS = 0.1
# So often the consumer looks after its lanes while they are at work.
LOOK_SECONDS = 0.2
# Within a batch Kafka is asked again when so much of `max.poll.interval.ms` is over. Not more
# often: partitions are paused for that, which discards what was fetched ahead.
POLL_AGAIN_AFTER = 0.25

# A lane that has been silent for `max.poll.interval.ms`, after which Kafka gives its partitions to
# others, and for so long beyond, does not come back: the process ends.
HANG_SECONDS = 30.0
# So often the loop makes sure that PostgreSQL and the topic are those that it knows.
CHECK_SECONDS = 5.0

Place = tuple[str, int]  # topic, partition
P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


class EventConsumer(Membership):
    """A member of a consumer group, which has its lanes process what it takes.

    One thread calls it.
    """

    def __init__(
        self, topic: str, group: str, batch_max_events: int, batch_max_wait: float, leaving: Leaving
    ) -> None:
        self.topic = topic
        self.group = group
        self._batch_max_events = batch_max_events
        self._batch_max_wait = batch_max_wait
        self._leaving = leaving
        self._poll_interval = settings.KAFKA_MAX_POLL_INTERVAL_MS / 1_000
        self.polled_at = time.monotonic()
        # Each assignment of a partition gets a number of its own: a partition that left and came
        # back while a batch was in hand is read again from its committed offset, so that batch must
        # not commit it.
        self._assignments: dict[Place, int] = {}
        self._in_hand: dict[Place, int] = {}
        self._numbers = itertools.count()
        # Partitions of ours, paused since their assignment, of which we do not know yet where to
        # start.
        self._unsettled: set[Place] = set()
        self._out_of_range: set[Place] = set()
        self._paused: set[Place] = set()
        self._checked_at = time.monotonic()
        self._early: list[Message] = []  # records that arrived while the consumer was paused
        self._callback_failure: Exception | None = None
        self._told_leaving = False
        self._silent_looks = 0  # at lanes of which one has given no sign of life
        # For the heartbeat alone.
        self.records_in_hand = 0
        self.records_done = 0
        self.busy_since = 0.0  # monotonic seconds, of the batch in hand
        # A position that Kafka does not have is told, and not passed over.
        config = {"error_cb": _on_error, "auto.offset.reset": "error"}
        self._consumer = Consumer(kafka.consumer_config(group) | config)
        self._positions = Positions(topic, group, self._consumer)

    def run(self, lanes: Lanes) -> None:
        """Have `lanes` process batches and commit each that is done; return when it is time to
        leave.

        What a lane raises leaves its batch uncommitted and propagates after a clean leave of the
        group. Raises `WorkerHangs` for a lane that gives no sign of life.
        """
        self._consumer.subscribe(
            [self.topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        try:
            while not self._leaving.begun:
                self.polled_at = time.monotonic()
                self._check()
                self._settle()
                if records := self._take_batch():
                    self._process(records, lanes)
        except WorkerStopping:
            log.info("batch_left_for_the_next_worker", group=self.group)
        finally:
            # From here on the watchdog counts, whatever the reason for leaving is.
            self._leaving.begin("failure")
            self._tell_leaving()
            self._leave()

    def partitions(self) -> list[int]:
        """Return the partitions assigned to this consumer."""
        return sorted(partition for _topic, partition in self._assignments.copy())

    def still_ours(self, record: Record) -> bool:
        """Tell whether the record's partition has stayed with this consumer since the batch was
        taken.
        """
        return self._still_held(record.topic_partition)

    def _still_held(self, place: Place) -> bool:
        # By number: a partition that left and came back was somebody else's in between.
        return place in self._in_hand and self._in_hand[place] == self._assignments.get(place)

    def _process(self, records: list[Record], lanes: Lanes) -> None:
        self.records_in_hand, self.busy_since = len(records), time.monotonic()
        with tracing.processing(records, self.group):
            batch = lanes.start(records, self)
            while not batch.done(LOOK_SECONDS):
                self._keep_place(batch)
        correlation.forget()
        # Only now: a crash before it has the batch come again, which changes nothing.
        self._commit(records)
        self._resume()
        self.records_done += len(records)
        self.records_in_hand = 0

    def _keep_place(self, batch: Batch) -> None:
        """Show Kafka that we live, as long as each lane of `batch` does."""
        self._tell_leaving()
        # No poll for a lane that hangs: it would keep us a member, and its partitions ours, for
        # ever.
        if not batch.all_asked_since(self.polled_at):
            self._bear_silence()
            return
        self._silent_looks = 0
        quiet = time.monotonic() - self.polled_at
        # Once paused, or while nothing gets done, another poll costs nothing and lets other members
        # come and go.
        if self._paused or batch.some_wait() or quiet > POLL_AGAIN_AFTER * self._poll_interval:
            self._poll_paused()

    def _bear_silence(self) -> None:
        """Raise `WorkerHangs` when a lane has been silent for too long.

        Looks are counted, not seconds: a process that was frozen as a whole has looked at nothing
        meanwhile.
        """
        self._silent_looks += 1
        if self._silent_looks * LOOK_SECONDS > self._poll_interval + HANG_SECONDS:
            raise WorkerHangs

    def _wait(self, seconds: float) -> None:
        """Wait in the consumer's own thread. Raises `WorkerStopping` when it is time to leave."""
        deadline = time.monotonic() + seconds
        while not self._leaving.begun:
            self._poll_paused()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, LOOK_SECONDS))
        raise WorkerStopping

    def _poll_paused(self) -> None:
        """Poll with all partitions paused, so that nothing new comes."""
        self.polled_at = time.monotonic()
        # Every time: a partition assigned meanwhile arrives unpaused.
        self._paused |= self._assignments.keys()
        self._consumer.pause(_partitions(self._assignments))
        self._keep(self._consumer.poll(0))

    def _resume(self) -> None:
        if not self._paused:
            return
        # Also what has left meanwhile: librdkafka would keep it paused if it ever came back.
        self._consumer.resume(_partitions(self._paused - self._unsettled))
        self._paused &= self._unsettled

    # Where to start -------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Find where to start in each partition that is new to us, however long that takes, and go
        there.
        """
        self._unsettle(self._out_of_range)
        attempt = 0
        while self._unsettled:
            try:
                self._go_to_starts()
            except (KafkaException, db.Error) as error:
                if isinstance(error, db.Error) and not retry.is_transient(error):
                    raise
                attempt += 1
                log.warning("start_not_found", attempt=attempt, error=str(error))
                self._wait(retry.backoff(attempt))
        self._resume()

    def _go_to_starts(self) -> None:
        # Not before there are partitions: a worker starts without PostgreSQL, and says so.
        self._ask(identity.require)
        partitions = {partition for _topic, partition in self._unsettled}
        out_of_range = {partition for _topic, partition in self._out_of_range}
        starts = self._ask(self._positions.starts, partitions, out_of_range & partitions)
        for partition, start in starts.items():
            self._go_to(TopicPartition(self.topic, partition, start))
        self._unsettled.clear()
        self._out_of_range.clear()
        log.info("partitions_started", group=self.group, offsets=starts)

    def _go_to(self, start: TopicPartition) -> None:
        try:
            self._consumer.seek(start)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            # librdkafka has given up this partition, whose topic is another one or which was out of
            # range.
            self._consumer.incremental_unassign([start])
            self._consumer.incremental_assign([start])

    def _check(self) -> None:
        """Start again where PostgreSQL went back, or the topic is another one, while nothing has
        come to process.
        """
        if time.monotonic() - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        settled = self._assignments.keys() - self._unsettled
        if not settled:
            return
        try:
            astray = self._ask(self._positions.astray, [partition for _topic, partition in settled])
        except (KafkaException, db.Error) as error:
            log.warning("positions_not_checked", error=str(error))
        else:
            self._unsettle({(self.topic, partition) for partition in astray})

    def _unsettle(self, places: Iterable[Place]) -> None:
        """Have what we hold of these partitions count for nothing, and their start be found
        anew.
        """
        ours = self._assignments.keys() & places
        if not ours:
            return
        self._consumer.pause(_partitions(ours))
        self._forget_early(ours)
        self._note_new(ours)

    def _note_new(self, places: Iterable[Place]) -> None:
        self._assignments |= {place: next(self._numbers) for place in places}
        self._unsettled |= set(places)
        self._paused |= set(places)

    def _ask(self, question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the answer of `question(…)`, and give the connection to PostgreSQL back for the
        lanes.

        Waits no longer for PostgreSQL than a lane does: meanwhile nobody polls Kafka.
        """
        close_old_connections()
        try:
            with each_answer_within(retry.ANSWER_SECONDS):
                return question(*args, **kwargs)
        finally:
            connection.close()

    # Taking and committing ------------------------------------------------------------------------

    def _take_batch(self) -> list[Record]:
        """Return the records of one poll: at once when there are any, after a second when there are
        none.
        """
        messages, self._early = self._early, []
        if not messages:
            first = self._consumer.poll(POLL_SECONDS if self._assignments else JOIN_POLL_SECONDS)
            if first is None:
                self._raise_callback_failure()
                return []
            # A single record is worth a few milliseconds' wait for others: they share a
            # transaction.
            messages = [
                first,
                *self._consumer.consume(self._batch_max_events - 1, self._batch_max_wait),
            ]
        self._raise_callback_failure()
        self._in_hand = dict(self._assignments)
        records = [Record.from_message(message) for message in messages if self._is_record(message)]
        return [record for record in records if self.still_ours(record)]

    def _keep(self, message: Message | None) -> None:
        if message is not None and self._is_record(message):
            self._early.append(message)

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.fatal():
            raise KafkaException(error)
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._out_of_range.add((message.topic() or "", message.partition() or 0))
        elif error.code() != KafkaError._PARTITION_EOF:
            log.warning("kafka_consumer_error", error=error.str())
        return False

    def _commit(self, records: Iterable[Record]) -> None:
        """Commit last offset + 1 of every partition still assigned, synchronously: in PostgreSQL,
        then in Kafka.
        """
        ends = {record.topic_partition: record.offset + 1 for record in records}
        moved = retry.until_possible(self._wait, self._ask, self._advance, ends)
        offsets = {place: end for place, end in ends.items() if place in moved}
        attempt = 0
        while offsets := self._held(offsets):
            try:
                self._commit_offsets(offsets)
            except KafkaException as error:
                attempt += 1
                log.warning("offsets_not_committed", attempt=attempt, error=str(error))
                self._wait(retry.backoff(attempt))
            else:
                return

    def _advance(self, ends: dict[Place, int]) -> set[Place]:
        held = self._held(ends)
        moved = self._positions.advance(
            {partition: end for (_topic, partition), end in held.items()}
        )
        places = {(self.topic, partition) for partition in moved}
        # Effects that we have seen committed may be gone with the server that committed them.
        self._unsettle(held.keys() - places)
        return places

    def _held(self, offsets: dict[Place, int]) -> dict[Place, int]:
        return {place: offset for place, offset in offsets.items() if self._still_held(place)}

    def _commit_offsets(self, offsets: dict[Place, int]) -> None:
        results = self._consumer.commit(
            offsets=[
                TopicPartition(topic, partition, offset)
                for (topic, partition), offset in offsets.items()
            ],
            asynchronous=False,
        )
        for result in results:
            if result.error:
                raise KafkaException(result.error)

    # An exception that escapes a rebalance callback makes librdkafka discard fetched records
    # (measured), so each callback records its failure for the loop to raise.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            # Paused before anything is fetched, anywhere: `_settle` knows better where to start.
            places = _places(partitions)
            consumer.incremental_assign(
                [TopicPartition(topic, number, 0) for topic, number in places]
            )
            consumer.pause(_partitions(places))
            self._note_new(places)
            self._count_assigned()
            log.info(
                "partitions_assigned",
                group=self.group,
                partitions=sorted(_partition_numbers(partitions)),
            )
        except Exception as error:  # noqa: BLE001 - see above
            self._callback_failure = error

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Nothing to commit here: every batch is committed before the next poll, and one in hand
        # drops the records of these partitions (`still_ours`).
        self._forget(partitions)
        log.info(
            "partitions_revoked",
            group=self.group,
            partitions=sorted(_partition_numbers(partitions)),
        )

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget(partitions)
        log.warning(
            "partitions_lost", group=self.group, partitions=sorted(_partition_numbers(partitions))
        )

    def _forget(self, partitions: list[TopicPartition]) -> None:
        try:
            gone = _places(partitions)
            self._forget_early(gone)
            for place in gone:
                self._assignments.pop(place, None)
            self._unsettled -= gone
            self._out_of_range -= gone
            self._count_assigned()
        except Exception as error:  # noqa: BLE001 - see above
            self._callback_failure = error

    def _forget_early(self, places: Collection[Place]) -> None:
        self._early = [m for m in self._early if (m.topic(), m.partition()) not in places]

    def _raise_callback_failure(self) -> None:
        failure, self._callback_failure = self._callback_failure, None
        if failure:
            raise failure

    def _count_assigned(self) -> None:
        assigned = metrics.kafka_consumer_assigned_partitions.labels(self.topic, self.group)
        assigned.set(len(self._assignments))

    def _tell_leaving(self) -> None:
        if self._leaving.begun and not self._told_leaving:
            self._told_leaving = True
            log.info("stopping", reason=self._leaving.reason)

    def _leave(self) -> None:
        self._consumer.close()
        log.info("left_group", group=self.group)


def _on_error(error: KafkaError) -> None:
    log.warning("kafka_consumer_error", error=error.str(), fatal=error.fatal())


def _places(partitions: Iterable[TopicPartition]) -> set[Place]:
    return {(partition.topic, partition.partition) for partition in partitions}


def _partition_numbers(partitions: Iterable[TopicPartition]) -> list[int]:
    return [partition.partition for partition in partitions]


def _partitions(places: Iterable[Place]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for topic, partition in places]
