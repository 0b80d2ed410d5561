"""The system with its API up, and a small network on it."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection
from pytest_django import DjangoDbBlocker, Settings

from eventbus import kafka
from tests.crash import network as networks
from tests.crash import outages
from tests.crash.network import Network
from tests.e2e.system import Process, System, running
from tests.kafka import running as apache_kafka

# Users of one test each: a worker killed before its offset commit leaves events that the next
# test's workers get.
_users = itertools.count(1_000, 1_000)


@pytest.fixture(autouse=True)
def fresh_broker(django_db_setup: None) -> None:
    """Start without what other tests have left in the broker, where workers that they killed still
    hold partitions, and one that was ended while it was about to join may do so for ever.
    """
    outages.renew_embedded_broker()


@pytest.fixture(scope="session")
def durable_commits(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Have a commit survive a killed PostgreSQL: the servers of the tests acknowledge before the
    log is written.
    """
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            f'ALTER DATABASE "{connection.settings_dict["NAME"]}" SET synchronous_commit = on'
        )
        connection.close()


@pytest.fixture(scope="module")
def api_processes() -> int:
    """How many processes the API has; a file for which one is enough says so, for each takes
    seconds to start.
    """
    return 2


@pytest.fixture
def system(
    transactional_db: None,
    durable_commits: None,
    api_processes: int,
    tmp_path: Path,
    settings: Settings,
) -> Iterator[System]:
    if (
        settings.KAFKA_SESSION_TIMEOUT_MS < 6_000
    ):  # the embedded broker's; Apache Kafka would refuse less
        settings.KAFKA_SESSION_TIMEOUT_MS = 2_000
    kafka.create_topics()
    with running(tmp_path) as started:
        started.api(WORKERS=str(api_processes))
        yield started
        if apache_kafka.apache_kafka is None:
            # The embedded broker assigns nothing any more to a group whose members left one right
            # after another.
            kill(started.processes)


def kill(processes: list[Process]) -> None:
    for process in processes:
        if process.running():
            process.kill()


@pytest.fixture
def network(system: System) -> Network:
    return networks.build(system, next(_users))
