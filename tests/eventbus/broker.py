"""Topics of one test each, and what is in them."""

from collections.abc import Mapping
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from eventbus import kafka, producer
from eventbus.record import Record
from tests.eventbus.events import eventually

TIMEOUT = 60.0  # seconds; enough also for a machine that is busy with other things


def unique_name() -> str:
    return f"test-{uuid4().hex}"


def create_topic(
    partitions: int = 1,
    max_message_bytes: int = 1_048_588,
    name: str = "",
    config: Mapping[str, str] | None = None,
) -> str:
    """Create an empty topic under a name of its own; by default with the limit that is Apache
    Kafka's.
    """
    topic = name or unique_name()
    admin = AdminClient(kafka.client_config())
    wanted = {"max.message.bytes": str(max_message_bytes)} | dict(config or {})
    admin.create_topics([NewTopic(topic, partitions, 1, config=wanted)])[topic].result(TIMEOUT)
    return topic


def recreate_topic(topic: str, partitions: int = 1) -> None:
    """Delete the topic and make one of its name, empty."""
    admin = AdminClient(kafka.client_config())
    admin.delete_topics([topic])[topic].result(TIMEOUT)
    eventually(lambda: topic not in admin.list_topics(timeout=TIMEOUT).topics)
    create_topic(partitions, name=topic)
    # The client library crashes when a topic that a producer knows is another one (librdkafka
    # 2.16).
    producer.close()


def delete_records(topic: str, before: int) -> None:
    """Have the broker delete the records of partition 0 below that offset, as retention does."""
    admin = AdminClient(kafka.client_config())
    partition = TopicPartition(topic, 0, before)
    admin.delete_records([partition])[partition].result(TIMEOUT)


def partitions_of(topic: str) -> int:
    """Return how many partitions the topic has; a broker may hear of a new topic after its creation
    was confirmed.
    """
    admin = AdminClient(kafka.client_config())
    eventually(lambda: topic in admin.list_topics(timeout=TIMEOUT).topics)
    return len(admin.list_topics(timeout=TIMEOUT).topics[topic].partitions)


def size_of(topic: str, partition: int) -> int:
    """Return how many records the partition holds."""
    reader = Consumer(kafka.client_config() | {"group.id": unique_name()})
    try:
        low, high = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT)
        return int(high - low)
    finally:
        reader.close()


def read_all(topic: str) -> list[Record]:
    """Return every record of the topic, partition by partition to its end, without joining a
    group.
    """
    return [
        record
        for partition in range(partitions_of(topic))
        for record in _read_partition(topic, partition)
    ]


def _read_partition(topic: str, partition: int) -> list[Record]:
    reader = Consumer(
        kafka.client_config()
        | {"group.id": unique_name(), "enable.partition.eof": True, "fetch.wait.max.ms": 10}
    )
    reader.assign([TopicPartition(topic, partition, 0)])
    records: list[Record] = []
    try:
        while True:
            message = reader.poll(TIMEOUT)
            assert message is not None, f"The broker did not tell the end of {topic}."
            error = message.error()
            if error is None:
                records.append(Record.from_message(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                return records
            else:
                raise KafkaException(error)
    finally:
        reader.close()
