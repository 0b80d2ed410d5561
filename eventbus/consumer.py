"""The consumer loop: poll → batch → process → commit offsets, until told to stop.

Offsets are committed explicitly and only after the effects are committed in PostgreSQL. That order alone loses
nothing; `processed_events` makes the redelivery it allows harmless.
"""

import itertools
import time
from collections.abc import Callable, Iterable

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from eventbus import correlation, kafka, metrics, retry
from eventbus.exceptions import WorkerStopping
from eventbus.subscription import Record

POLL_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 0.2

Place = tuple[str, int]  # topic, partition
Handle = Callable[[list[Record]], None]

log = structlog.get_logger(__name__)


class EventConsumer:
    """A member of a consumer group. One thread calls it; `stop` may come from a signal handler."""

    def __init__(self, topic: str, group: str, batch_max_events: int, batch_max_wait: float) -> None:
        self.topic = topic
        self.group = group
        self._batch_max_events = batch_max_events
        self._batch_max_wait = batch_max_wait
        self._stopping = False
        self.polled_at = time.monotonic()
        # Each assignment of a partition gets a number of its own: a partition that left and came back while a
        # batch was in hand is read again from its committed offset, so that batch must not commit it.
        self._assignments: dict[Place, int] = {}
        self._in_hand: dict[Place, int] = {}
        self._numbers = itertools.count()
        self._early: list[Message] = []  # records that arrived while the consumer was paused
        self._callback_failure: Exception | None = None
        # For the heartbeat alone.
        self.records_in_hand = 0
        self.records_done = 0
        self.busy_since = 0.0  # monotonic seconds, of the batch in hand
        self._consumer = Consumer(kafka.consumer_config(group) | {"error_cb": _on_error})

    def run(self, handle: Handle) -> None:
        """Hand batches to `handle` and commit each after it returns; return after `stop`.

        An exception of `handle` leaves the batch uncommitted and propagates after a clean leave of the group.
        """
        self._consumer.subscribe(
            [self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        try:
            while not self._stopping:
                self.polled_at = time.monotonic()
                if records := self._take_batch():
                    self.records_in_hand, self.busy_since = len(records), time.monotonic()
                    handle(records)
                    correlation.forget()
                    self._commit(records)
                    self.records_done += len(records)
                    self.records_in_hand = 0
        except WorkerStopping:
            log.info("batch_left_for_the_next_worker", group=self.group)
        finally:
            self._leave()

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand."""
        self._stopping = True

    def partitions(self) -> list[int]:
        """Return the partitions assigned to this consumer."""
        return sorted(partition for _topic, partition in self._assignments.copy())

    def still_ours(self, record: Record) -> bool:
        """Tell whether the record's partition has stayed with this consumer since the batch was taken."""
        return self._still_held(record.topic_partition)

    def _still_held(self, place: Place) -> bool:
        return place in self._in_hand and self._in_hand[place] == self._assignments.get(place)

    def wait(self, seconds: float) -> None:
        """Wait, keeping our place in the group. Raises `WorkerStopping` when told to stop."""
        deadline = time.monotonic() + seconds

        def busy(at_most: float) -> bool:
            time.sleep(max(0.0, min(deadline - time.monotonic(), at_most)))
            return time.monotonic() < deadline

        self.keep_alive(busy)

    def keep_alive(self, busy: Callable[[float], bool]) -> None:
        """Poll on with all partitions paused, so that the group does not think us dead, until `busy` says False.

        `busy(seconds)` is asked between two polls and should take so long. Raises `WorkerStopping` when told to stop.
        """
        paused: set[Place] = set()
        try:
            while True:
                if self._stopping:
                    raise WorkerStopping
                self.polled_at = time.monotonic()
                # Every time round: a partition assigned meanwhile arrives unpaused.
                paused |= self._assignments.keys()
                self._consumer.pause(_partitions(self._assignments))
                self._keep(self._consumer.poll(0))
                if not busy(KEEP_ALIVE_SECONDS):
                    return
        finally:
            # Also what has left meanwhile: librdkafka would keep it paused if it ever came back.
            self._consumer.resume(_partitions(paused))

    def _take_batch(self) -> list[Record]:
        """Return the records of one poll: at once when there are any, after a second when there are none."""
        messages, self._early = self._early, []
        if not messages:
            first = self._consumer.poll(POLL_SECONDS)
            if first is None:
                self._raise_callback_failure()
                return []
            # A single record is worth a few milliseconds' wait for others: they share a transaction.
            messages = [first, *self._consumer.consume(self._batch_max_events - 1, self._batch_max_wait)]
        self._raise_callback_failure()
        self._in_hand = dict(self._assignments)
        records = [Record.from_message(message) for message in messages if _is_record(message)]
        return [record for record in records if self.still_ours(record)]

    def _keep(self, message: Message | None) -> None:
        if message is not None and _is_record(message):
            self._early.append(message)

    def _commit(self, records: Iterable[Record]) -> None:
        """Commit last offset + 1 of every partition still assigned, synchronously."""
        offsets: dict[Place, int] = {}
        for record in records:
            if self.still_ours(record):
                offsets[record.topic_partition] = record.offset + 1
        attempt = 0
        while offsets:
            try:
                self._commit_offsets(offsets)
            except KafkaException as error:
                attempt += 1
                log.warning("offsets_not_committed", attempt=attempt, error=str(error))
                self.wait(retry.backoff(attempt))
                offsets = {place: offset for place, offset in offsets.items() if self._still_held(place)}
            else:
                return

    def _commit_offsets(self, offsets: dict[Place, int]) -> None:
        results = self._consumer.commit(
            offsets=[TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()],
            asynchronous=False,
        )
        for result in results:
            if result.error:
                raise KafkaException(result.error)

    # An exception that escapes a rebalance callback makes librdkafka discard fetched records (measured), so each
    # callback records its failure for the loop to raise.

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._assignments |= {place: next(self._numbers) for place in _places(partitions)}
            self._count_assigned()
            log.info("partitions_assigned", group=self.group, partitions=sorted(_partition_numbers(partitions)))
        except Exception as error:  # noqa: BLE001 - see above
            self._callback_failure = error

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Nothing to commit here: every batch is committed before the next poll, and one in hand drops
        # the records of these partitions (`still_ours`).
        self._forget(partitions)
        log.info("partitions_revoked", group=self.group, partitions=sorted(_partition_numbers(partitions)))

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget(partitions)
        log.warning("partitions_lost", group=self.group, partitions=sorted(_partition_numbers(partitions)))

    def _forget(self, partitions: list[TopicPartition]) -> None:
        try:
            gone = _places(partitions)
            self._early = [m for m in self._early if (m.topic(), m.partition()) not in gone]
            for place in gone:
                self._assignments.pop(place, None)
            self._count_assigned()
        except Exception as error:  # noqa: BLE001 - see above
            self._callback_failure = error

    def _raise_callback_failure(self) -> None:
        failure, self._callback_failure = self._callback_failure, None
        if failure:
            raise failure

    def _count_assigned(self) -> None:
        assigned = metrics.kafka_consumer_assigned_partitions.labels(self.topic, self.group)
        assigned.set(len(self._assignments))

    def _leave(self) -> None:
        self._consumer.close()
        log.info("left_group", group=self.group)


def _is_record(message: Message) -> bool:
    error = message.error()
    if error is None:
        return True
    if error.fatal():
        raise KafkaException(error)
    if error.code() != KafkaError._PARTITION_EOF:
        log.warning("kafka_consumer_error", error=error.str())
    return False


def _on_error(error: KafkaError) -> None:
    log.warning("kafka_consumer_error", error=error.str(), fatal=error.fatal())


def _places(partitions: Iterable[TopicPartition]) -> set[Place]:
    return {(partition.topic, partition.partition) for partition in partitions}


def _partition_numbers(partitions: Iterable[TopicPartition]) -> list[int]:
    return [partition.partition for partition in partitions]


def _partitions(places: Iterable[Place]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for topic, partition in places]
