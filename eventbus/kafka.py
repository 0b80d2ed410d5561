"""Kafka client configuration, topic names and topic creation."""

import logging
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic
from django.conf import settings

from eventbus import cells

FEED_EVENTS = "feed-events"
DEAD_LETTER_EVENTS = "dead-letter-events"
TOPICS = (FEED_EVENTS, DEAD_LETTER_EVENTS)

# With several cells each has groups of its own: see `fanout_group`.
FANOUT_GROUP = "fanout"
DLQ_GROUP = "dlq"

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
# A dead letter is the whole record and the headers that say why. The limits of topics count
# compressed bytes, so the record may be larger than its topic's limit by itself, and ours may
# compress worse than what its producer used.
MAX_DEAD_LETTER_BYTES = 16 * 1024 * 1024
# Retention deletes whole segments; this bounds how much longer than that a record may live.
SEGMENT_HOURS = 12
# With the segment it is the day by which `PROCESSED_EVENTS_DAYS` exceeds the retention, so that a
# dead letter that is read again is still known.
DEAD_LETTER_EXTRA_HOURS = 12
METADATA_TIMEOUT = 10.0  # seconds
TOPIC_ID_TIMEOUT = 5.0

# Kafka's own client; the log knows it by this name (feedsite/outage_lines.py).
log = logging.getLogger("librdkafka")

Config = dict[str, Any]


def fanout_group() -> str:
    """Return the group that builds the feeds of the cell we are on."""
    return cells.here().named(FANOUT_GROUP)


def dlq_group() -> str:
    """Return the group that stores the dead letters of the cell we are on."""
    return cells.here().named(DLQ_GROUP)


def groups() -> dict[str, str]:
    """Return the topic of each consumer group of the cell we are on."""
    return {fanout_group(): FEED_EVENTS, dlq_group(): DEAD_LETTER_EVENTS}


def client_config() -> Config:
    """Return what every Kafka client here shares: servers, security, logging."""
    return {
        "bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS,
        "allow.auto.create.topics": False,
        "logger": log,
        **{name: value for name, value in settings.KAFKA_SECURITY.items() if value},
    }


def producer_config() -> Config:
    """Return the configuration of an idempotent producer whose records are durable once reported
    delivered.
    """
    return {
        **client_config(),
        "acks": "all",
        "enable.idempotence": True,
        # The same key lands in the same partition as from a Java client.
        "partitioner": "murmur2_random",
        "linger.ms": settings.KAFKA_LINGER_MS,
        "message.timeout.ms": settings.KAFKA_PUBLISH_TIMEOUT_MS,
        "message.max.bytes": MAX_DEAD_LETTER_BYTES,
        "queue.buffering.max.messages": settings.KAFKA_QUEUE_MAX_MESSAGES,
        "compression.type": "lz4",
        "topic.metadata.refresh.interval.ms": 30_000,
        # A broker that comes back, or a topic that is made anew, is found within about a second.
        "reconnect.backoff.max.ms": 1_000,
        "retry.backoff.max.ms": 1_000,
        "topic.metadata.propagation.max.ms": 1_000,
        # A broker that vanished without closing its connections is noticed.
        "socket.keepalive.enable": True,
        "socket.timeout.ms": 10_000,
    }


def consumer_config(group: str) -> Config:
    """Return the configuration of a consumer that commits offsets only when told to."""
    config: Config = {
        **client_config(),
        "group.id": group,
        "group.protocol": settings.KAFKA_GROUP_PROTOCOL,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "max.poll.interval.ms": settings.KAFKA_MAX_POLL_INTERVAL_MS,
        "fetch.wait.max.ms": settings.KAFKA_FETCH_WAIT_MS,
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 50_000,
        "topic.metadata.refresh.interval.ms": 30_000,
    }
    if settings.KAFKA_GROUP_PROTOCOL == "classic":
        # With the newer protocol the broker owns both.
        config["partition.assignment.strategy"] = "cooperative-sticky"
        config["session.timeout.ms"] = settings.KAFKA_SESSION_TIMEOUT_MS
        config["heartbeat.interval.ms"] = settings.KAFKA_SESSION_TIMEOUT_MS // 5
    return config


def topic_id(admin: AdminClient, topic: str) -> str:
    """Return the id by which the broker tells the topic from another one of its name; "" where
    brokers have none.

    Raises `KafkaException`, also for a topic that does not exist.
    """
    asked = admin.describe_topics(TopicCollection([topic]), request_timeout=TOPIC_ID_TIMEOUT)[topic]
    # Before Kafka 2.8 a topic has no id of its own, and gets one of zeros.
    found = str(asked.result().topic_id)
    return "" if set(found) <= {"A"} else found


def oldest_offsets(topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the offset of the oldest record that Kafka has in each of these partitions.

    Raises `KafkaException`.
    """
    with closing(Consumer({**client_config(), "group.id": FANOUT_GROUP})) as consumer:
        ends = {
            number: consumer.get_watermark_offsets(
                TopicPartition(topic, number), timeout=METADATA_TIMEOUT
            )
            for number in partitions
        }
    return {number: int(oldest) for number, (oldest, _end) in ends.items()}


def create_topics() -> dict[str, str]:
    """Create both topics, or add the partitions they lack; return what was done by topic.

    Idempotent.

    Raises `KafkaException` when the brokers cannot be reached or refuse.
    """
    admin = AdminClient(client_config())
    known = admin.list_topics(timeout=METADATA_TIMEOUT).topics
    return {
        topic: _ensure(admin, topic, len(known[topic].partitions) if topic in known else 0)
        for topic in TOPICS
    }


def _ensure(admin: AdminClient, topic: str, partitions: int) -> str:
    wanted = settings.KAFKA_PARTITIONS
    if partitions >= wanted:
        return f"exists with {partitions} partitions"
    if partitions:
        admin.create_partitions([NewPartitions(topic, wanted)])[topic].result()
        return f"grew from {partitions} to {wanted} partitions"
    try:
        admin.create_topics([_new_topic(topic)])[topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    return f"created with {wanted} partitions"


def _new_topic(topic: str) -> NewTopic:
    return NewTopic(
        topic,
        num_partitions=settings.KAFKA_PARTITIONS,
        replication_factor=settings.KAFKA_REPLICATION_FACTOR,
        config=topic_config(topic, settings.KAFKA_REPLICATION_FACTOR),
    )


def topic_config(topic: str, copies: int) -> dict[str, str]:
    """Return the configuration that `topic` is to have with so many copies of each record."""
    return {
        "retention.ms": str(retention_hours(topic) * 3_600_000),
        "segment.ms": str(SEGMENT_HOURS * 3_600_000),
        "max.message.bytes": str(max_message_bytes(topic)),
        "min.insync.replicas": str(min_insync_replicas(copies)),
        # Whatever the brokers' own defaults are.
        "unclean.leader.election.enable": "false",
        "cleanup.policy": "delete",
    }


def min_insync_replicas(copies: int) -> int:
    """Return how many brokers must have a write before it is acknowledged: it survives the loss of
    one, if it can.
    """
    return min(2, copies)


def max_message_bytes(topic: str) -> int:
    """Return how large a record of `topic` may be, compressed."""
    return MAX_DEAD_LETTER_BYTES if topic == DEAD_LETTER_EVENTS else MAX_MESSAGE_BYTES


def retention_hours(topic: str) -> int:
    """Return how long `topic` is to keep a record; an event that failed at its end is to be there
    still.
    """
    hours: int = settings.KAFKA_RETENTION_HOURS
    return hours + DEAD_LETTER_EXTRA_HOURS if topic == DEAD_LETTER_EVENTS else hours
