"""What is wrong with the topics as they are: with what `202` promises, and with what the settings
ask for.

A write is answered `202` once Kafka has acknowledged it, and must then survive the loss of any one
broker. That rests on the topics, which anyone may have made or changed.
"""

from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from django.conf import settings

from eventbus import kafka

HOUR_MS = 3_600_000
FOR_EVER = -1  # as retention


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the brokers describe it."""

    name: str
    partitions: int
    copies: int  # of the partition that has the fewest
    config: dict[str, str]

    @property
    def retention_ms(self) -> int | None:
        """Return how long records are kept, `FOR_EVER`, or None if the broker does not tell."""
        text = self.config.get("retention.ms")
        return None if text is None else int(text)

    @property
    def min_insync_replicas(self) -> int:
        """Return how many brokers must have a write before it is acknowledged; Kafka's default is
        one.
        """
        return int(self.config.get("min.insync.replicas", "1"))


def check(timeout: float = kafka.METADATA_TIMEOUT) -> list[str]:
    """Return all that is wrong with the topics, a sentence each. Raises `KafkaException`."""
    topics = _describe(timeout)
    return _missing(topics) + _promises_broken(topics) + _settings_not_met(topics)


def promise_broken(timeout: float = kafka.METADATA_TIMEOUT) -> list[str]:
    """Return why a write that Kafka acknowledges may be lost all the same, a sentence each; none if
    it may not.

    Waits for Kafka, up to `timeout` seconds for each of three answers. Raises `KafkaException`,
    also where there is no topic to write to.
    """
    topics = _describe(timeout)
    if kafka.FEED_EVENTS not in topics:
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    return _promises_broken(topics)


def fix(timeout: float = kafka.METADATA_TIMEOUT) -> None:
    """Give the topics the configuration that `kafka.create_topics` would.

    Raises `KafkaException`.
    """
    admin = AdminClient(kafka.client_config())
    for topic in _describe(timeout).values():
        wanted = kafka.topic_config(topic.name, topic.copies)
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in wanted.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic.name, incremental_configs=entries)
        admin.incremental_alter_configs([resource], request_timeout=timeout)[resource].result()


def _describe(timeout: float) -> dict[str, Topic]:
    admin = AdminClient(kafka.client_config())
    known = admin.list_topics(timeout=timeout).topics
    return {
        name: _topic(admin, name, known[name], timeout) for name in kafka.TOPICS if name in known
    }


def _topic(admin: AdminClient, name: str, metadata: Any, timeout: float) -> Topic:
    if metadata.error is not None:
        raise KafkaException(metadata.error)
    resource = ConfigResource(ResourceType.TOPIC, name)
    described = admin.describe_configs([resource], request_timeout=timeout)[resource].result()
    return Topic(
        name,
        partitions=len(metadata.partitions),
        copies=min(len(partition.replicas) for partition in metadata.partitions.values()),
        config={
            option: entry.value for option, entry in described.items() if entry.value is not None
        },
    )


def _missing(topics: dict[str, Topic]) -> list[str]:
    return [
        f"There is no topic {name}: run manage.py create_topics."
        for name in kafka.TOPICS
        if name not in topics
    ]


def _promises_broken(topics: dict[str, Topic]) -> list[str]:
    return [sentence for topic in topics.values() for sentence in _promise_broken(topic)]


def _promise_broken(topic: Topic) -> list[str]:
    broken = []
    if topic.copies < settings.KAFKA_REPLICATION_FACTOR:
        broken.append(
            f"{topic.name} keeps {topic.copies} copies of a record and KAFKA_REPLICATION_FACTOR says "
            f"{settings.KAFKA_REPLICATION_FACTOR}: add replicas with kafka-reassign-partitions.sh."
        )
    needed = kafka.min_insync_replicas(topic.copies)
    if topic.min_insync_replicas < needed:
        broken.append(
            f"{topic.name} has min.insync.replicas={topic.min_insync_replicas} with {topic.copies} copies, so a "
            f"broker may acknowledge a write that it alone has, and lose it: set {needed}."
        )
    if topic.min_insync_replicas > topic.copies:
        broken.append(
            f"{topic.name} has min.insync.replicas={topic.min_insync_replicas} with {topic.copies} copies, so no "
            f"write is ever acknowledged: set {needed}."
        )
    if topic.config.get("unclean.leader.election.enable") == "true":
        broken.append(
            f"{topic.name} has unclean.leader.election.enable=true, so a broker that lacks acknowledged writes "
            "may become the leader: set false."
        )
    if "compact" in topic.config.get("cleanup.policy", ""):
        broken.append(
            f"{topic.name} has cleanup.policy={topic.config['cleanup.policy']}, so of each user only the last "
            "event is kept: set delete."
        )
    return broken


def _settings_not_met(topics: dict[str, Topic]) -> list[str]:
    wrong = []
    for topic in topics.values():
        if topic.partitions < settings.KAFKA_PARTITIONS:
            wrong.append(
                f"{topic.name} has {topic.partitions} partitions and KAFKA_PARTITIONS says "
                f"{settings.KAFKA_PARTITIONS}: run manage.py create_topics."
            )
        max_bytes = kafka.max_message_bytes(topic.name)
        if int(topic.config.get("max.message.bytes", max_bytes)) < max_bytes:
            wrong.append(
                f"{topic.name} has max.message.bytes={topic.config['max.message.bytes']}: set {max_bytes}."
            )
    return wrong + _retention_not_met(topics)


def _retention_not_met(topics: dict[str, Topic]) -> list[str]:
    events, dead_letters = topics.get(kafka.FEED_EVENTS), topics.get(kafka.DEAD_LETTER_EVENTS)
    wrong = []
    if events and events.retention_ms not in (None, settings.KAFKA_RETENTION_HOURS * HOUR_MS):
        wrong.append(
            f"{events.name} keeps records for {_hours(events.retention_ms)} and KAFKA_RETENTION_HOURS says "
            f"{settings.KAFKA_RETENTION_HOURS}: set retention.ms={settings.KAFKA_RETENTION_HOURS * HOUR_MS}."
        )
    if (
        events
        and dead_letters
        and not _is_kept_longer(dead_letters.retention_ms, events.retention_ms)
    ):
        wrong.append(
            f"{dead_letters.name} keeps records for {_hours(dead_letters.retention_ms)}, no longer than "
            f"{events.name}, so an event may be gone from both before anyone has seen that it failed: "
            f"set retention.ms={kafka.retention_hours(dead_letters.name) * HOUR_MS}."
        )
    return wrong


def _is_kept_longer(retention_ms: int | None, other_ms: int | None) -> bool:
    if retention_ms is None or other_ms is None or retention_ms == FOR_EVER:
        return True
    return other_ms != FOR_EVER and retention_ms > other_ms


def _hours(retention_ms: int | None) -> str:
    if retention_ms is None or retention_ms == FOR_EVER:
        return "ever"
    return f"{retention_ms / HOUR_MS:g} hours"
