"""The lag of a group, asked from outside of it."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Consumer, TopicPartition

from eventbus import kafka, producer
from eventbus.watch.backlog import Backlog, Standing, total
from tests.eventbus import broker

# murmur2 puts these keys into these two partitions.
KEYS = (b"2", b"1")


@pytest.fixture
def topic() -> str:
    return broker.create_topic(partitions=2)


@pytest.fixture
def backlog(topic: str) -> Iterator[Backlog]:
    with closing(Backlog(topic, broker.unique_name())) as backlog:
        yield backlog


def publish(topic: str, count: int, partition: int = 0) -> None:
    """Publish records in as few batches as they make."""
    for _ in range(count):
        producer.get().send(topic, KEYS[partition], b"x", (), lambda error: None)
    assert producer.get().flush() == 0


def commit(backlog: Backlog, offset: int, partition: int = 0) -> None:
    """Commit for the group, as a member of it would."""
    member = Consumer(kafka.client_config() | {"group.id": backlog.group})
    member.commit(offsets=[TopicPartition(backlog.topic, partition, offset)], asynchronous=False)
    member.close()


def lags(backlog: Backlog) -> dict[int, int]:
    return {number: standing.lag for number, standing in backlog.read().items()}


def test_a_group_that_has_never_committed_has_the_whole_topic_before_it(backlog: Backlog) -> None:
    assert lags(backlog) == {0: 0, 1: 0}
    publish(backlog.topic, 100)
    publish(backlog.topic, 7, partition=1)
    assert lags(backlog) == {0: 100, 1: 7}


def test_the_lag_follows_commits_also_into_the_midst_of_a_batch_and_what_comes_in(
    backlog: Backlog,
) -> None:
    publish(backlog.topic, 100)
    commit(backlog, 63)
    assert backlog.read()[0] == Standing(committed=63, lag=37)
    publish(backlog.topic, 500)
    assert backlog.read()[0] == Standing(committed=63, lag=537)
    commit(backlog, 600)
    assert backlog.read()[0] == Standing(committed=600, lag=0)
    assert total(backlog.topic, backlog.group) == 0


def test_asking_commits_nothing(backlog: Backlog) -> None:
    publish(backlog.topic, 3)
    for _ in range(3):
        assert backlog.read()[0].committed < 0


def test_a_topic_that_does_not_exist_has_no_backlog() -> None:
    assert total(broker.unique_name(), "nobody") == 0
