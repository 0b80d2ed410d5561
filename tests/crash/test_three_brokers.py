"""Three Apache Kafka brokers, of which some go away while clients write: every 202 is there, and
nothing is doubled.
"""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient
from pytest_django import Settings

from eventbus import kafka, producer, topics
from tests.crash.load import Load
from tests.crash.network import Network
from tests.e2e.system import wait_until
from tests.kafka import running
from tests.kafka.apache import ApacheKafka, cluster, start_all

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        running.apache_kafka is None,
        reason="starts three Apache Kafka brokers: run `make test-kafka`",
    ),
]

COPIES = 3
BEFORE, AWAY, AFTER = 1.0, 3.0, 2.0  # seconds of load


@pytest.fixture(scope="module")
def started() -> Iterator[list[ApacheKafka]]:
    brokers = cluster(COPIES)
    try:
        start_all(brokers)
        yield brokers
    finally:
        for broker in brokers:
            broker.kill()
            broker.remove()


@pytest.fixture(autouse=True)
def brokers(started: list[ApacheKafka], settings: Settings) -> Iterator[list[ApacheKafka]]:
    """Have this test, and the processes it starts, use the three."""
    producer.close()
    settings.KAFKA_BOOTSTRAP_SERVERS = ",".join(broker.address for broker in started)
    settings.KAFKA_REPLICATION_FACTOR = COPIES
    yield started
    producer.close()


def in_sync() -> bool:
    """Tell whether every broker has all that is in our topics."""
    known = AdminClient(kafka.client_config()).list_topics(timeout=10).topics
    partitions = [
        partition for topic in kafka.TOPICS for partition in known[topic].partitions.values()
    ]
    return all(len(partition.isrs) == COPIES for partition in partitions)


def leader(brokers: list[ApacheKafka]) -> ApacheKafka:
    """Return the broker that takes the writes of a partition of `feed-events`."""
    topic = (
        AdminClient(kafka.client_config())
        .list_topics(kafka.FEED_EVENTS, timeout=10)
        .topics[kafka.FEED_EVENTS]
    )
    node = topic.partitions[0].leader
    return next(broker for broker in brokers if broker.node == node)


def start_workers(network: Network) -> None:
    assert topics.promise_broken() == []
    for _ in range(2):
        network.system.worker()


def test_a_leader_is_killed_under_load(network: Network, brokers: list[ApacheKafka]) -> None:
    start_workers(network)
    with Load(network) as load:
        time.sleep(BEFORE)
        victim = leader(brokers)
        victim.kill()
        accepted = load.posts
        wait_until(lambda: load.posts > accepted + 10)  # by the other two
        victim.start()
        time.sleep(AFTER)
    wait_until(in_sync)
    network.prove()


def test_two_of_three_are_away(network: Network, brokers: list[ApacheKafka]) -> None:
    start_workers(network)
    with Load(network) as load:
        time.sleep(BEFORE)
        for broker in brokers[:2]:
            broker.kill()
        wait_until(lambda: load.answers["503"] > 0)
        time.sleep(AWAY)
        start_all(brokers[:2])
        time.sleep(AFTER)
    wait_until(in_sync)
    network.prove()


def test_each_is_restarted_in_turn(network: Network, brokers: list[ApacheKafka]) -> None:
    start_workers(network)
    with Load(network) as load:
        for broker in brokers:
            time.sleep(BEFORE)
            broker.stop()
            accepted = load.posts
            wait_until(lambda: load.posts > accepted + 10)  # noqa: B023 - asked before the next turn
            broker.start()
            wait_until(in_sync)
        time.sleep(AFTER)
    network.prove()
