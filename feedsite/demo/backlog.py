"""What a consumer group has not processed yet, by asking the broker; works also while the group has no member."""

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from eventbus import kafka

TIMEOUT = 5.0  # seconds


def backlog(topic: str, group: str) -> int:
    """Return how many records of `topic` lie beyond what `group` has committed. Raises `KafkaException`.

    Fetching tells where a partition ends on every broker; the embedded one answers the direct question wrongly.
    """
    consumer = Consumer(
        {
            **kafka.client_config(),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    try:
        return _beyond(consumer, _committed(consumer, topic))
    finally:
        consumer.close()


def _committed(consumer: Consumer, topic: str) -> list[TopicPartition]:
    known = consumer.list_topics(timeout=TIMEOUT).topics
    if topic not in known:
        return []
    partitions = [TopicPartition(topic, number) for number in known[topic].partitions]
    # Negative where nothing was committed yet: the group will start with the first record.
    return [
        TopicPartition(topic, found.partition, max(found.offset, 0))
        for found in consumer.committed(partitions, timeout=TIMEOUT)
    ]


def _beyond(consumer: Consumer, positions: list[TopicPartition]) -> int:
    """Read one answer from each position; it tells how far the partition reaches."""
    # Assigned by hand, so this consumer does not join the group.
    consumer.assign(positions)
    waiting = {position.partition: position.offset for position in positions}
    deadline = time.monotonic() + TIMEOUT
    left = 0
    while waiting:
        message = consumer.poll(0.5)
        if message is not None and _answers(message) and message.partition() in waiting:
            partition = TopicPartition(str(message.topic()), int(message.partition() or 0))
            _low, high = consumer.get_watermark_offsets(partition, cached=True)
            left += max(0, high - waiting.pop(partition.partition))
        elif time.monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return left


def _answers(message: Message) -> bool:
    error = message.error()
    return error is None or error.code() == KafkaError._PARTITION_EOF
