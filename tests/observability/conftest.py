"""A system per test, with events that no earlier test has left behind."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from pytest_django import Settings

from eventbus import kafka
from eventbus.watch.backlog import Backlog
from tests.crash.conftest import fresh_broker
from tests.e2e.system import System, running, wait_until

__all__ = ["fresh_broker"]


@pytest.fixture
def idle_system(transactional_db: None, tmp_path: Path, settings: Settings) -> Iterator[System]:
    """No process yet, and nothing for workers to do: what other tests have left is skipped."""
    if (
        settings.KAFKA_SESSION_TIMEOUT_MS < 6_000
    ):  # the embedded broker's; Apache Kafka would refuse less
        settings.KAFKA_SESSION_TIMEOUT_MS = 2_000
    kafka.create_topics()
    for group, topic in kafka.groups().items():
        wait_until(lambda topic=topic, group=group: skipped(topic, group))  # type: ignore[misc]
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def system(idle_system: System) -> System:
    """The API and no worker yet."""
    idle_system.api()
    return idle_system


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip(
            "promtool is missing: install Prometheus to test what is for it (Debian: apt install prometheus)"
        )
    return found


def skipped(topic: str, group: str) -> bool:
    """Commit the end of the topic for the group; False while the group has a member that was killed
    just now.
    """
    member = Consumer(kafka.client_config() | {"group.id": group})
    try:
        with closing(Backlog(topic, group)) as backlog:
            ends = {number: max(at.committed, 0) + at.lag for number, at in backlog.read().items()}
        offsets = [TopicPartition(topic, number, end) for number, end in ends.items()]
        committed = member.commit(offsets=offsets, asynchronous=False)
        return all(partition.error is None for partition in committed)
    except KafkaException:
        return False
    finally:
        member.close()
