"""Fixtures of the event path's tests. `broker`, `events` and `journal` hold the plain helpers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from django.db import connection
from pytest_django import Settings

from eventbus import kafka, producer
from tests.eventbus import broker

Script = subprocess.Popen[str]
StartScript = Callable[..., Script]

SECRETS = {"DJANGO_SECRET_KEY": "s" * 50, "JWT_SIGNING_KEY": "s" * 50}


@pytest.fixture
def feed_events(monkeypatch: pytest.MonkeyPatch) -> str:
    """Have this test's events published to an empty topic of its own."""
    topic = broker.create_topic(partitions=6)
    monkeypatch.setattr(kafka, "FEED_EVENTS", topic)
    return topic


@pytest.fixture
def dead_letter_events(monkeypatch: pytest.MonkeyPatch) -> str:
    """Have this test's dead letters written to an empty topic of its own."""
    topic = broker.create_topic()
    monkeypatch.setattr(kafka, "DEAD_LETTER_EVENTS", topic)
    return topic


@pytest.fixture
def own_producer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test a producer that its own settings shape, and drop it afterwards."""
    monkeypatch.setattr(producer, "_producer", None)
    yield
    producer.close()


@pytest.fixture
def quick_joins(settings: Settings) -> None:
    """Shorten what a new group waits for members: half the session time-out on the embedded
    broker.
    """
    if settings.KAFKA_SESSION_TIMEOUT_MS < 6_000:  # Apache Kafka would refuse it
        settings.KAFKA_SESSION_TIMEOUT_MS = 2_000


@pytest.fixture
def start_script(transactional_db: None, settings: Settings) -> Iterator[StartScript]:
    """Start Python code in a process of its own, with settings that name the servers of this
    test.
    """
    database = connection.settings_dict
    address = f"{database['HOST']}:{database['PORT']}/{database['NAME']}"
    environment = {
        **os.environ,
        **SECRETS,
        "DJANGO_SETTINGS_MODULE": "feedsite.settings",
        "DATABASE_URL": f"postgresql://{database['USER']}:{quote(database['PASSWORD'], safe='')}@{address}",
        "KAFKA_BOOTSTRAP_SERVERS": settings.KAFKA_BOOTSTRAP_SERVERS,
        "KAFKA_SESSION_TIMEOUT_MS": str(settings.KAFKA_SESSION_TIMEOUT_MS),
    }
    started: list[Script] = []

    def start(source: str, *arguments: str) -> Script:
        command = [sys.executable, "-c", source, *arguments]
        script = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(script)
        return script

    yield start
    for script in started:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
        script.communicate()


def output_of(script: Script) -> str:
    """Return what the script printed, once it has ended well."""
    output, _ = script.communicate(timeout=broker.TIMEOUT)
    assert script.returncode == 0
    return output
