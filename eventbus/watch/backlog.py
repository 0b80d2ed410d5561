"""What a consumer group has not processed yet, asked from outside the group: it works also while no
worker lives.

A fetch from the committed offset tells where the partition ends, on every broker. The direct
question does not: the embedded broker answers it with the start of the last batch.
"""

import time
from contextlib import closing
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from eventbus import kafka

TIMEOUT = 5.0  # seconds
POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a group has come in a partition."""

    committed: int  # the offset it goes on from; negative before its first commit
    lag: int  # records from there to the end


class Backlog:
    """Asks for one group on one topic.

    Not a member of the group; one thread at a time may use it.
    """

    def __init__(self, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        self._consumer = Consumer(
            {
                **kafka.client_config(),
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                # One answer a partition is enough, and it may be empty.
                "fetch.wait.max.ms": 10,
                "max.partition.fetch.bytes": 1,
                "queued.min.messages": 1,
                # Else a partition whose turn comes when another one has answered waits for a
                # second.
                "fetch.queue.backoff.ms": 10,
                # What fails is raised. A line for each try to connect would be some 200 for each
                # question.
                "log_level": 2,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def read(self) -> dict[int, Standing]:
        """Return the standing in each partition; nothing for a topic that does not exist.

        Raises `KafkaException`.
        """
        committed = self._committed()
        # Assigned by hand, so this consumer does not join the group.
        self._consumer.assign(
            [TopicPartition(self.topic, number, offset) for number, offset in committed.items()]
        )
        try:
            lags = self._lags(set(committed))
        finally:
            self._consumer.unassign()
        return {number: Standing(committed[number], lag) for number, lag in lags.items()}

    def _committed(self) -> dict[int, int]:
        topic = self._consumer.list_topics(self.topic, timeout=TIMEOUT).topics[self.topic]
        asked = [TopicPartition(self.topic, number) for number in topic.partitions]
        answered = self._consumer.committed(asked, timeout=TIMEOUT) if asked else []
        for partition in answered:
            if partition.error:
                raise KafkaException(partition.error)
        return {partition.partition: partition.offset for partition in answered}

    def _lags(self, waiting: set[int]) -> dict[int, int]:
        """Wait for the first answer of each partition: the first record not committed, or the
        end.
        """
        lags: dict[int, int] = {}
        deadline = time.monotonic() + TIMEOUT
        while waiting:
            message = self._consumer.poll(POLL_SECONDS)
            if message is not None and _answers(message) and message.partition() in waiting:
                number, first = int(message.partition() or 0), int(message.offset() or 0)
                _low, end = self._consumer.get_watermark_offsets(
                    TopicPartition(self.topic, number), cached=True
                )
                lags[number] = max(0, end - first)
                waiting.remove(number)
            elif time.monotonic() > deadline:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return lags


def lags(topic: str, group: str) -> dict[int, int]:
    """Return how many records of each partition lie beyond what `group` has committed.

    Raises `KafkaException`.
    """
    with closing(Backlog(topic, group)) as backlog:
        return {number: standing.lag for number, standing in backlog.read().items()}


def total(topic: str, group: str) -> int:
    """Return the same for the whole topic."""
    return sum(lags(topic, group).values())


def _answers(message: Message) -> bool:
    error = message.error()
    return error is None or error.code() == KafkaError._PARTITION_EOF
