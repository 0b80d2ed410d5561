"""Reading a topic again from its beginning, to rebuild what was lost from the log.

The events take the ordinary path, so those that were processed before change nothing, and workers
may go on running.
"""

import time
from collections.abc import Callable

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from eventbus import kafka
from eventbus.consume.lanes import Lanes
from eventbus.consume.leaving import Leaving
from eventbus.consume.processing import Processor
from eventbus.deadletters.writer import DeadLetterWriter
from eventbus.exceptions import ServerAway
from eventbus.record import Record
from eventbus.subscription import Membership, Subscription

POLL_SECONDS = 1.0
# A worker waits for a server for as long as that takes; who has started a replay is to be told.
PATIENCE_SECONDS = 60.0


class _WholeTopic(Membership):
    """Who reads without a group loses no partition."""

    def still_ours(self, _record: Record) -> bool:
        return True


def replay(subscription: Subscription, track: Callable[[int], object]) -> int:
    """Process all that the topic holds now; return the number of records.

    `track` hears of each batch's size.

    What cannot be processed becomes a dead letter, stored once for each origin. Commits no offsets:
    when interrupted, start again. Raises `KafkaException`, `DeadLetterFlood`, and `ServerAway` when a
    server does not answer for `PATIENCE_SECONDS`.
    """
    burial = DeadLetterWriter(subscription.group)
    lanes = Lanes(subscription.lanes, Processor(subscription.handlers), burial, Leaving())
    config = {"group.id": f"{subscription.group}-replay", "enable.partition.eof": True}
    consumer = Consumer(kafka.consumer_config(subscription.group) | config)
    try:
        return _read_all(consumer, subscription, lanes, track)
    finally:
        consumer.close()


def _read_all(
    consumer: Consumer, subscription: Subscription, lanes: Lanes, track: Callable[[int], object]
) -> int:
    partitions = consumer.list_topics(subscription.topic, timeout=kafka.METADATA_TIMEOUT).topics[
        subscription.topic
    ]
    if partitions.error is not None:
        raise KafkaException(partitions.error)
    unfinished = set(partitions.partitions)
    # Assigned by hand: this consumer joins no group and takes nothing away from the workers.
    consumer.assign(
        [TopicPartition(subscription.topic, number, OFFSET_BEGINNING) for number in unfinished]
    )
    total = 0
    heard_at = time.monotonic()
    while unfinished:
        messages = consumer.consume(subscription.batch_max_events, POLL_SECONDS)
        # Of each partition its end is told too, so there is something to hear until then.
        if not messages and time.monotonic() - heard_at > PATIENCE_SECONDS:
            raise ServerAway("Kafka")
        unfinished -= {message.partition() for message in messages if _is_end(message)}
        if records := [
            Record.from_message(message) for message in messages if message.error() is None
        ]:
            lanes.process(records, _WholeTopic(), PATIENCE_SECONDS)
            total += len(records)
            track(len(records))
        if messages:
            heard_at = time.monotonic()
    return total


def _is_end(message: Message) -> bool:
    error = message.error()
    if error is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    raise KafkaException(error)
