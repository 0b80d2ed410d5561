"""Where a member of a group goes on in each partition: found at its assignment, moved with each
batch, watched.

PostgreSQL's offset and Kafka's are compared by the rule in `eventbus.consume.offsets`. A topic that
was made anew under the same name, and records that Kafka deleted before they were processed, are
noticed here too, and told.
"""

from collections.abc import Collection, Mapping

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from eventbus import kafka, metrics
from eventbus.consume import offsets
from eventbus.consume.offsets import KeptOffset, Move
from eventbus.database import pool

TIMEOUT = 5.0  # seconds

log = structlog.get_logger(__name__)


class Positions:
    """The positions of one group on one topic, as far as this member has them."""

    def __init__(self, topic: str, group: str, consumer: Consumer) -> None:
        self._topic = topic
        self._group = group
        self._consumer = consumer
        self._admin = AdminClient(kafka.client_config())
        self._server = ""
        self._topic_id = ""
        self._left_at: dict[int, int] = {}  # what PostgreSQL keeps, as we know it, by partition
        metrics.kafka_records_lost_total.labels(
            topic, group
        )  # from 0, or its first rise would not be seen

    def starts(self, partitions: Collection[int], out_of_range: Collection[int]) -> dict[int, int]:
        """Return the offset to start from in each of `partitions`.

        In those that are `out_of_range` Kafka had no record at the offset we were at. Raises
        `KafkaException` and `DatabaseError`.
        """
        topic_id = kafka.topic_id(self._admin, self._topic)
        committed = self._committed(partitions)
        # The server before what it keeps: if it changes in between, `advance` notices.
        server = offsets.server()
        if server != self._server:
            # The one before may still answer on the sessions that we have with it. What a lane
            # commits there is not where the offsets are.
            pool.renew()
        kept = offsets.kept(self._group, self._topic, partitions)
        starts: dict[int, int] = {}
        for number in partitions:
            first, end = self._ends(number)
            start = self._known_start(
                number, kept.get(number), committed.get(number), first, topic_id
            )
            starts[number] = self._existing(
                number, start, first, end if number in out_of_range else None
            )
        # So that what is told here is told once.
        changed = {
            number: start
            for number, start in starts.items()
            if kept.get(number) != KeptOffset(start, topic_id)
        }
        if changed:
            offsets.put(self._group, self._topic, topic_id, changed)
        self._server, self._topic_id = server, topic_id
        self._left_at |= starts
        return starts

    def advance(self, ends: Mapping[int, int]) -> set[int]:
        """Have PostgreSQL keep these offsets, by partition; return the partitions of which it does.

        Not of those whose offset is not where we left it: what we take for processed may be gone.
        Raises `DatabaseError`.
        """
        moves = {number: Move(self._left_at[number], end) for number, end in ends.items()}
        moved = offsets.advance(self._group, self._topic, self._topic_id, self._server, moves)
        self._left_at |= {number: ends[number] for number in moved}
        return moved

    def astray(self, partitions: Collection[int]) -> set[int]:
        """Return the partitions in which we are not where PostgreSQL is, or read a topic that is no
        more.

        Raises `KafkaException` and `DatabaseError`.
        """
        kept = offsets.kept(self._group, self._topic, partitions)
        expected = {
            number: KeptOffset(self._left_at[number], self._topic_id) for number in partitions
        }
        if kafka.topic_id(self._admin, self._topic) != self._topic_id:
            return set(partitions)
        return {number for number in partitions if kept.get(number) != expected[number]}

    def _known_start(
        self, number: int, kept: KeptOffset | None, committed: int | None, first: int, topic_id: str
    ) -> int:
        """Return the lower of PostgreSQL's offset and Kafka's.

        Where PostgreSQL has none that is Kafka's, which is also how a group from before this table
        goes on; the oldest record's, `first`, for a group that has neither, and for a topic that is
        another one.
        """
        if kept is None:
            return first if committed is None else committed
        if kept.is_untouched and committed is None:
            return first
        if kept.topic_id and topic_id and kept.topic_id != topic_id:
            self._tell_rewind("topic_recreated", number, kept.next_offset, first)
            return first
        if committed is None:
            return kept.next_offset
        if committed > kept.next_offset:
            self._tell_rewind("database_behind", number, committed, kept.next_offset)
        return min(committed, kept.next_offset)

    def _existing(self, number: int, start: int, first: int, end: int | None) -> int:
        """Return `start`, or the offset of the oldest record if Kafka has none at `start`.

        `end` is the offset of the next record to come, if that may lie before `start`.
        """
        if start < first:
            self._tell_loss(number, start, first)
            return first
        if end is not None and start > end:
            self._tell_rewind("log_shorter", number, start, first)
            return first
        return start

    def _committed(self, partitions: Collection[int]) -> dict[int, int]:
        asked = [TopicPartition(self._topic, number) for number in partitions]
        answered = self._consumer.committed(asked, timeout=TIMEOUT)
        for partition in answered:
            if partition.error:
                raise KafkaException(partition.error)
        return {
            partition.partition: partition.offset for partition in answered if partition.offset >= 0
        }

    def _ends(self, number: int) -> tuple[int, int]:
        """Return the offset of the oldest record that Kafka has, and of the next to come."""
        partition = TopicPartition(self._topic, number)
        first, end = self._consumer.get_watermark_offsets(partition, timeout=TIMEOUT)
        return int(first), int(end)

    def _tell_rewind(self, reason: str, number: int, known: int, start: int) -> None:
        metrics.kafka_consumer_rewinds_total.labels(self._topic, self._group, reason).inc()
        log.warning(
            "partition_read_again", reason=reason, partition=number, kafka=known, start=start
        )

    def _tell_loss(self, number: int, start: int, first: int) -> None:
        metrics.kafka_records_lost_total.labels(self._topic, self._group).inc(first - start)
        log.critical(
            "records_lost", partition=number, wanted=start, oldest=first, records=first - start
        )
