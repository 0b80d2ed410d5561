"""Topic creation: idempotent, growing where the broker can, and telling what is wrong with topics
that exist.
"""

from io import StringIO

import pytest
from confluent_kafka import KafkaError, KafkaException
from django.core.management import CommandError, call_command
from pytest_django import Settings

from eventbus import kafka
from eventbus import topics as topic_checks
from tests.eventbus import broker
from tests.eventbus.events import eventually
from tests.kafka import running


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> tuple[str, str]:
    """Have this test's topics be two that do not exist, of three partitions."""
    names = broker.unique_name(), broker.unique_name()
    monkeypatch.setattr(kafka, "TOPICS", names)
    monkeypatch.setattr(kafka, "FEED_EVENTS", names[0])
    monkeypatch.setattr(kafka, "DEAD_LETTER_EVENTS", names[1])
    settings.KAFKA_PARTITIONS = 3
    return names


def test_topics_are_created_once(topics: tuple[str, str]) -> None:
    assert kafka.create_topics() == dict.fromkeys(topics, "created with 3 partitions")
    assert [broker.partitions_of(topic) for topic in topics] == [3, 3]
    assert kafka.create_topics() == dict.fromkeys(topics, "exists with 3 partitions")


def test_topics_grow_to_the_partitions_wanted_and_never_shrink(
    topics: tuple[str, str], settings: Settings
) -> None:
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
    # A broker on a busy machine may hear of them only after their creation was confirmed.
    eventually(lambda: [broker.partitions_of(topic) for topic in topics] == [5, 5])


def test_the_command_says_what_it_did(topics: tuple[str, str]) -> None:
    output = StringIO()
    call_command("create_topics", stdout=output)
    assert output.getvalue().splitlines() == [
        f"{topic}: created with 3 partitions" for topic in topics
    ]


def test_the_command_names_the_setting_to_check_when_there_is_no_broker(
    topics: tuple[str, str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    monkeypatch.setattr(kafka, "METADATA_TIMEOUT", 0.2)
    with pytest.raises(CommandError, match="check KAFKA_BOOTSTRAP_SERVERS"):
        call_command("create_topics")


# Topics that are not as they should be ------------------------------------------------------------


def made(name: str, **config: str) -> None:
    """Have a topic that somebody else made; `config` with underscores for dots."""
    options = {option.replace("_", "."): value for option, value in config.items()}
    broker.create_topic(partitions=3, name=name, config=options)
    broker.partitions_of(name)


def test_topics_as_they_are_created_keep_the_promise(topics: tuple[str, str]) -> None:
    kafka.create_topics()
    eventually(lambda: topic_checks.check() == [])
    assert topic_checks.promise_broken() == []


def test_topics_that_are_missing_are_named(topics: tuple[str, str]) -> None:
    assert topic_checks.check() == [
        f"There is no topic {topic}: run manage.py create_topics." for topic in topics
    ]
    with pytest.raises(KafkaException, match="UNKNOWN_TOPIC"):
        topic_checks.promise_broken()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"min_insync_replicas": "2"}, "so no write is ever acknowledged: set 1"),
        ({"unclean_leader_election_enable": "true"}, "may become the leader: set false"),
        ({"cleanup_policy": "compact"}, "of each user only the last event is kept: set delete"),
    ],
)
def test_a_topic_that_breaks_the_promise_is_told(
    topics: tuple[str, str], config: dict[str, str], complaint: str
) -> None:
    made(topics[0], **config)
    [broken] = topic_checks.promise_broken()
    assert broken.startswith(f"{topics[0]} has")
    assert complaint in broken


def test_a_topic_with_fewer_copies_than_asked_for_breaks_the_promise(
    topics: tuple[str, str], settings: Settings
) -> None:
    made(topics[0])
    settings.KAFKA_REPLICATION_FACTOR = 3
    [broken] = topic_checks.promise_broken()
    assert "keeps 1 copies of a record and KAFKA_REPLICATION_FACTOR says 3" in broken


def test_a_topic_that_is_not_as_the_settings_say_makes_the_command_fail(
    topics: tuple[str, str],
) -> None:
    week = str(168 * topic_checks.HOUR_MS)
    made(topics[0], retention_ms=week, max_message_bytes="1000000")
    made(topics[1], retention_ms=week)
    with pytest.raises(CommandError) as failure:
        call_command("create_topics", stdout=StringIO())
    told = str(failure.value)
    assert f"{topics[0]} has max.message.bytes=1000000: set 2097152." in told
    assert f"{topics[1]} keeps records for 168 hours, no longer than {topics[0]}" in told
    assert "set retention.ms=648000000" in told
    assert told.endswith("What is to be set, create_topics --fix sets.")


def test_a_retention_other_than_the_setting_is_told(topics: tuple[str, str]) -> None:
    made(topics[0], retention_ms="-1")
    assert any(
        "keeps records for ever and KAFKA_RETENTION_HOURS says 168" in told
        for told in topic_checks.check()
    )


def test_what_is_to_be_set_is_set_when_asked_for(topics: tuple[str, str]) -> None:
    made(topics[0], retention_ms="3600000", unclean_leader_election_enable="true")
    try:
        call_command("create_topics", "--fix", stdout=StringIO())
    except CommandError:
        if running.apache_kafka is not None:
            raise
        pytest.skip("The embedded broker cannot change the configuration of a topic.")
    assert topic_checks.check() == []
