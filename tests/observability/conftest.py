"""A system per test, with events that no earlier test has left behind."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pytest_django import Settings

from eventbus import backlog, kafka
from tests.e2e.system import System, running, wait_until
from tests.observability.processes import Worker


@pytest.fixture
def idle_system(transactional_db: None, tmp_path: Path, settings: Settings) -> Iterator[System]:
    """No process yet; the groups have worked off what others have published."""
    if settings.KAFKA_SESSION_TIMEOUT_MS < 6_000:  # the embedded broker's; Apache Kafka would refuse less
        settings.KAFKA_SESSION_TIMEOUT_MS = 2_000
    kafka.create_topics()
    with running(tmp_path / "before") as before:
        for command, group in (("run_fanout", kafka.FANOUT_GROUP), ("run_dlq", kafka.DLQ_GROUP)):
            if not nothing_left(group):
                Worker(before, command)
                wait_until(partial(nothing_left, group))
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def system(idle_system: System) -> System:
    """The API and no worker yet."""
    idle_system.api()
    return idle_system


def nothing_left(group: str) -> bool:
    return backlog.total(kafka.GROUPS[group], group) == 0
