"""`manage.py replay_topic`: the log alone gives the very same feeds again."""

import random
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django import Settings

from eventbus import producer
from eventbus.consume import topic_replay
from eventbus.models import ProcessedEvent
from feeds import verification
from feedsite.embedded.postgres import POSTGRES
from tests.crash.outages import EmbeddedServer, needs_embedded_postgres
from tests.eventbus.conftest import feed_events
from tests.feeds.model import expected_feed, feed, history
from tests.feeds.worker import Worker

__all__ = ["feed_events"]

pytestmark = pytest.mark.django_db(transaction=True)

USERS = range(1, 9)
TABLES = {
    "posts": (
        "id, author_id, content, data, created_at, fanout, deleted_event_id,"
        " content_event_id, data_event_id"
    ),
    "waiting_edits": "event_id",
    "follows": "follower_id, followee_id, active, idle, event_id",
    "feeds": "user_id, floor, idle, follower_count",
    "feed_entries": "user_id, post_id, author_id",
    "processed_events": "event_id, type",
}


@pytest.fixture
def published(feed_events: str) -> list[Any]:
    """What some users did over a while, in the log and processed."""
    chance = random.Random(20261124)
    kinds = ["post"] * 5 + ["follow"] * 4 + ["unfollow", "delete", "edit", "edit"]
    steps = [(chance.choice(kinds), chance.choice(USERS), chance.choice(USERS)) for _ in range(400)]
    facts = history(steps)
    for fact in facts:
        producer.publish(fact.to_event())
    worker = Worker()
    for start in range(0, len(facts), 50):
        worker.process(*facts[start : start + 50])
    return facts


def contents() -> dict[str, list[str]]:
    """Return every row of every table as text."""
    found = {}
    with connection.cursor() as cursor:
        for table, columns in TABLES.items():
            cursor.execute(f"SELECT row({columns})::text FROM {table} ORDER BY 1")  # noqa: S608 - names of our own
            found[table] = [row for (row,) in cursor.fetchall()]
    return found


def lose_everything() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {', '.join(TABLES)}")


def replay() -> str:
    out = StringIO()
    call_command("replay_topic", from_beginning=True, stdout=out)
    return out.getvalue()


@pytest.mark.parametrize("strategy", ["push", "hybrid"])
def test_an_empty_database_gets_back_every_row(
    settings: Settings, strategy: str, published: list[Any]
) -> None:
    settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = strategy, 3
    lose_everything()
    replay()
    before = contents()
    lose_everything()
    assert replay() == f"{len(published)} events replayed\n"
    assert contents() == before
    assert {user: feed(user) for user in USERS} == {
        user: expected_feed(published, user) for user in USERS
    }
    assert verification.verify().equal


def test_what_the_worker_built_and_what_the_log_gives_are_the_same_bytes(
    published: list[Any],
) -> None:
    before = contents()
    assert len(before["feed_entries"]) > 500
    lose_everything()
    replay()
    assert contents() == before


def test_events_processed_before_change_nothing(published: list[Any]) -> None:
    before = contents()
    replay()
    assert contents() == before
    assert ProcessedEvent.objects.count() == len(published)


def test_it_must_be_meant() -> None:
    with pytest.raises(CommandError, match="--from-beginning"):
        call_command("replay_topic")


@needs_embedded_postgres
def test_without_postgresql_it_ends_with_a_sentence_and_goes_on_where_it_was(
    published: list[Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FEED_BATCH_MAX_EVENTS = 20
    monkeypatch.setattr(topic_replay, "PATIENCE_SECONDS", 0.5)
    before = contents()
    lose_everything()
    postgres = EmbeddedServer(POSTGRES)
    stopped: list[int] = []

    def stop_once(_bar: object, count: int) -> None:
        if not stopped:
            stopped.append(count)
            postgres.stop()

    monkeypatch.setattr("tqdm.tqdm.update", stop_once)
    try:
        with pytest.raises(CommandError, match="has not answered for a while"):
            replay()
    finally:
        postgres.start()
    assert 0 < ProcessedEvent.objects.count() < len(published)
    replay()
    assert contents() == before
