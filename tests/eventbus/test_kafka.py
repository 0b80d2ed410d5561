"""Topic creation: idempotent, and growing where the broker can."""

from io import StringIO

import pytest
from confluent_kafka import KafkaError, KafkaException
from django.core.management import CommandError, call_command
from pytest_django import Settings

from eventbus import kafka
from tests.eventbus import broker


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> tuple[str, str]:
    """Have this test's topics be two that do not exist, of three partitions."""
    names = broker.unique_name(), broker.unique_name()
    monkeypatch.setattr(kafka, "TOPICS", names)
    settings.KAFKA_PARTITIONS = 3
    return names


def test_topics_are_created_once(topics: tuple[str, str]) -> None:
    assert kafka.create_topics() == dict.fromkeys(topics, "created with 3 partitions")
    assert [broker.partitions_of(topic) for topic in topics] == [3, 3]
    assert kafka.create_topics() == dict.fromkeys(topics, "exists with 3 partitions")


def test_topics_grow_to_the_partitions_wanted_and_never_shrink(topics: tuple[str, str], settings: Settings) -> None:
    kafka.create_topics()
    assert [broker.partitions_of(topic) for topic in topics] == [3, 3]
    settings.KAFKA_PARTITIONS = 2
    assert kafka.create_topics() == dict.fromkeys(topics, "exists with 3 partitions")
    settings.KAFKA_PARTITIONS = 5
    try:
        assert kafka.create_topics() == dict.fromkeys(topics, "grew from 3 to 5 partitions")
    except KafkaException as error:
        if error.args[0].code() != KafkaError._UNSUPPORTED_FEATURE:
            raise
        pytest.skip("The embedded broker cannot add partitions.")
    assert [broker.partitions_of(topic) for topic in topics] == [5, 5]


def test_the_command_says_what_it_did(topics: tuple[str, str]) -> None:
    output = StringIO()
    call_command("create_topics", stdout=output)
    assert output.getvalue().splitlines() == [f"{topic}: created with 3 partitions" for topic in topics]


def test_the_command_names_the_setting_to_check_when_there_is_no_broker(
    topics: tuple[str, str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    monkeypatch.setattr(kafka, "METADATA_TIMEOUT", 0.2)
    with pytest.raises(CommandError, match="check KAFKA_BOOTSTRAP_SERVERS"):
        call_command("create_topics")
