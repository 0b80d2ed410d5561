"""Apache Kafka is killed, restarted and given more partitions while clients write; nothing is lost
or doubled.
"""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from eventbus import kafka, producer
from eventbus.models import DeadLetter, ProcessedEvent
from tests.crash.load import Load
from tests.crash.network import Network
from tests.e2e.system import wait_until
from tests.eventbus import broker
from tests.kafka import running
from tests.kafka.apache import ApacheKafka

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        running.apache_kafka is None,
        reason="restarts an Apache Kafka: run `make test-kafka`; the embedded broker keeps its log in memory",
    ),
]

BEFORE, AWAY, AFTER = 2.0, 5.0, 3.0  # seconds of load
# Clients look for new partitions every 30 seconds.
METADATA_SECONDS = 45.0


@pytest.fixture
def apache_kafka() -> Iterator[ApacheKafka]:
    assert running.apache_kafka is not None
    yield running.apache_kafka
    producer.close()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_the_broker_goes_away_with_messages_in_flight(
    end: str, network: Network, apache_kafka: ApacheKafka
) -> None:
    workers = [network.system.worker(), network.system.worker(), network.system.command("run_dlq")]
    poison = [f"no event {uuid4()}".encode() for _ in range(2)]
    with Load(network) as load:
        # Else all clients may be waiting to delete a post that is still on its way.
        wait_until(ProcessedEvent.objects.exists)
        time.sleep(BEFORE)
        producer.publish_record(kafka.FEED_EVENTS, b"1", poison[0])
        getattr(apache_kafka, end)()
        time.sleep(AWAY)
        apache_kafka.start()
        producer.publish_record(kafka.FEED_EVENTS, b"1", poison[1])
        time.sleep(AFTER)
    assert load.answers["503"] > 0, "No client had a message in flight."
    network.prove()
    wait_until(lambda: DeadLetter.objects.filter(value__in=poison).count() == 2)
    assert all(worker.running() for worker in workers)


def test_a_topic_grows_under_load(network: Network) -> None:
    """Keys move to other partitions, and their events are consumed from both; ids decide, not the
    order.
    """
    partitions = broker.partitions_of(kafka.FEED_EVENTS)
    system = network.system
    workers = [system.worker(), system.worker()]
    with Load(network):
        time.sleep(BEFORE)
        grown = system.command("create_topics", KAFKA_PARTITIONS=str(partitions + 3))
        assert grown.popen.wait() == 0, grown.log.read_text()
        time.sleep(AFTER)
        # A new process knows the new partitions at once, before the workers do.
        system.processes[0].kill()
        system.api()
        time.sleep(AFTER)
    assert broker.partitions_of(kafka.FEED_EVENTS) == partitions + 3
    assert any(
        broker.size_of(kafka.FEED_EVENTS, partition)
        for partition in range(partitions, partitions + 3)
    )
    network.prove(METADATA_SECONDS)
    assert all(worker.running() for worker in workers)


def test_a_worker_is_killed_under_the_consumer_protocol_of_kafka_4(network: Network) -> None:
    newer = {"KAFKA_GROUP_PROTOCOL": "consumer"}
    victim, survivor = network.system.worker(**newer), network.system.worker(**newer)
    with Load(network):
        wait_until(
            lambda: all(
                "partitions_assigned" in worker.log.read_text() for worker in (victim, survivor)
            )
        )
        time.sleep(BEFORE)
        victim.kill()
        time.sleep(AFTER)
    network.prove()
    assert survivor.stop() == 0
