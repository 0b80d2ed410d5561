"""The pipeline page: its numbers are those of what happened, and whatever is away is said to be."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import connection
from django.db.models import F
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from eventbus import kafka, producer
from eventbus.consume.consumer import EventConsumer
from eventbus.consume.leaving import Leaving
from eventbus.consume.processing import Processor
from eventbus.models import PipelineMinute, WorkerHeartbeat
from eventbus.watch import heartbeat
from eventbus.watch.heartbeat import Heart
from feeds import handlers
from tests.admin.pages import PIPELINE, context_of, operator, rows_of, text_of
from tests.eventbus.dead_letter_factories import an_entry
from tests.eventbus.events import a_record
from tests.eventbus.turns import FreeTurn
from tests.factories import PostCreatedFactory, UserFollowedFactory

pytestmark = pytest.mark.django_db(transaction=True)


def shown(client: Client) -> Any:
    """Return what the page shows of the only cell."""
    [only] = context_of(client, PIPELINE)["cells"]
    return only


def a_processor() -> Processor:
    return Processor(handlers.FeedHandlers())


def process(processor: Processor, *facts: Any) -> None:
    processor.process(
        [a_record(fact.to_event(), offset) for offset, fact in enumerate(facts)], FreeTurn()
    )


@pytest.fixture
def heart(feed_events: str) -> Iterator[Heart]:
    """The heart of a worker that has processed three posts in one batch and has no partitions."""
    processor = a_processor()
    process(processor, *(PostCreatedFactory() for _ in range(3)))
    consumer = EventConsumer(feed_events, kafka.FANOUT_GROUP, 10, 0.1, Leaving())
    yield Heart(consumer, processor.worker_id, processor.slowest)
    consumer._consumer.close()


def test_rates_are_the_events_whose_effect_is_committed(admin_client: Client) -> None:
    one, other = a_processor(), a_processor()
    posts = [PostCreatedFactory() for _ in range(7)]
    process(one, *posts[:4], UserFollowedFactory())
    process(other, *posts[4:])
    process(one, *posts)  # delivered again
    rows = rows_of(text_of(admin_client, PIPELINE), "rates-table")
    assert [row[:3] for row in rows] == [["post.created", "7", "7"], ["user.followed", "1", "1"]]


def test_events_of_a_transaction_that_failed_are_not_counted(admin_client: Client) -> None:
    processor = a_processor()
    post = PostCreatedFactory(author_id=9)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE posts ADD CONSTRAINT none_by_9 CHECK (author_id <> 9)")
    try:
        process(processor, post, PostCreatedFactory(author_id=8))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE posts DROP CONSTRAINT none_by_9")
    assert [rate.total for rate in shown(admin_client)["rates"].value] == [1]


def test_the_chart_has_a_bar_where_something_happened(admin_client: Client) -> None:
    this_minute = timezone.now().replace(second=0, microsecond=0)
    for ago, events in ((0, 5), (10, 20), (59, 1), (60, 1_000)):
        PipelineMinute.objects.create(
            minute=this_minute - timedelta(minutes=ago),
            worker_id=uuid4(),
            type="post.created",
            events=events,
            seconds=events / 100,
        )
    page = text_of(admin_client, PIPELINE)
    # The minute may have turned since.
    assert "events processed in 60 minutes, at most 20 a minute" in page
    [row] = rows_of(page, "rates-table")
    assert row[1] in ("25", "26")
    assert row[3] == "10.0 ms"


def test_a_worker_is_alive_silent_or_gone(admin_client: Client, heart: Heart) -> None:
    heart.beat()
    [row] = rows_of(text_of(admin_client, PIPELINE), "workers-table")
    assert row[1] == "alive"
    WorkerHeartbeat.objects.update(last_seen_at=F("last_seen_at") - timedelta(seconds=16))
    [row] = rows_of(text_of(admin_client, PIPELINE), "workers-table")
    assert row[1] == "silent"
    heart.beat(leaving=True)
    [row] = rows_of(text_of(admin_client, PIPELINE), "workers-table")
    assert row[1] == "left"


def test_the_slowest_events_come_with_the_heartbeat(admin_client: Client, heart: Heart) -> None:
    heart.beat()
    [row] = rows_of(text_of(admin_client, PIPELINE), "slowest-table")
    assert row[1] == "post.created"
    assert row[3:5] == ["3", "0"]


def test_what_nobody_looks_at_any_more_is_forgotten(heart: Heart) -> None:
    heart.beat()
    heartbeat.forget_old()
    assert (WorkerHeartbeat.objects.count(), PipelineMinute.objects.count()) == (1, 1)
    WorkerHeartbeat.objects.update(last_seen_at=F("last_seen_at") - timedelta(hours=2))
    PipelineMinute.objects.update(minute=F("minute") - timedelta(days=2))
    heartbeat.forget_old()
    assert (WorkerHeartbeat.objects.count(), PipelineMinute.objects.count()) == (0, 0)


def test_the_lag_is_known_without_any_worker(admin_client: Client, feed_events: str) -> None:
    for author in range(1, 6):
        producer.publish(PostCreatedFactory(author_id=author).to_event())
    lag = shown(admin_client)["lags"][0]
    assert (lag.total, len(lag.partitions), lag.unowned) == (5, 6, 6)
    assert "6 partitions without a worker" in text_of(admin_client, PIPELINE)


def test_dead_letters_are_grouped_by_cause(admin_client: Client) -> None:
    an_entry(message="bad note 1")
    an_entry(message="bad note 2")
    [row] = rows_of(text_of(admin_client, PIPELINE), "dead-letters-table")
    assert row[:3] == ["note.taken: ValueError", "2", "2"]


def states(client: Client) -> dict[str, str]:
    return {name: answer.problem for name, answer, _remark in shown(client)["dependencies"]}


def test_everything_is_there(admin_client: Client, feed_events: str) -> None:
    assert states(admin_client) == {"PostgreSQL": "", "Kafka": "", "Redis": ""}


def test_without_kafka_the_page_says_so(admin_client: Client, settings: Settings) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    told = states(admin_client)
    assert told.pop("Kafka").startswith(("no answer within 0.8 s", "unreachable"))
    assert told == {"PostgreSQL": "", "Redis": ""}
    assert "lag unknown" in text_of(admin_client, PIPELINE)


def test_questions_that_hang_do_not_keep_others_from_an_answer(
    admin_client: Client, settings: Settings
) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    for _ in range(6):
        assert states(admin_client)["Redis"] == ""


def test_without_redis_the_page_says_so(
    admin_client: Client, feed_events: str, settings: Settings
) -> None:
    nowhere = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1"}}
    settings.CACHES = nowhere
    assert states(admin_client) == {
        "PostgreSQL": "",
        "Kafka": "",
        "Redis": "unreachable (ConnectionError)",
    }


def test_a_table_that_does_not_answer_costs_its_own_part_alone(
    admin_client: Client, feed_events: str
) -> None:
    an_entry()
    place = connection.settings_dict
    address = {
        "host": place["HOST"],
        "port": place["PORT"],
        "user": place["USER"],
        "password": place["PASSWORD"],
    }
    with psycopg.connect(dbname=place["NAME"], **address) as other:
        other.execute("LOCK pipeline_minutes, worker_heartbeats")
        page = text_of(admin_client, PIPELINE)
    assert page.count("unknown: PostgreSQL gave no answer (OperationalError)") == 2
    assert "without a worker" not in page
    assert len(rows_of(page, "dead-letters-table")) == 1


def test_the_page_costs_the_same_queries_however_much_there_is(
    admin_client: Client, feed_events: str, django_assert_max_num_queries: Any
) -> None:
    for number in range(15):
        an_entry(error=f"builtins.Error{number}")
        process(a_processor(), PostCreatedFactory())
    with django_assert_max_num_queries(30):
        text_of(admin_client, PIPELINE)


def test_who_may_see_what(client: Client) -> None:
    operator(client, "view_workerheartbeat")
    page = text_of(client, PIPELINE)
    assert "Workers" in page
    assert "Dead letters" not in page


def test_without_permission_there_is_nothing_to_see(client: Client) -> None:
    assert client.get(PIPELINE).status_code == 302
    operator(client, "view_post")
    assert client.get(PIPELINE).status_code == 403
    assert PIPELINE not in text_of(client, "/admin/")


def test_the_admin_leads_to_the_pipeline_first(admin_client: Client) -> None:
    page = text_of(admin_client, "/admin/")
    links = page[page.index('id="content"') :].split('href="')[1:]
    assert links[0].startswith(PIPELINE)
