"""The admin's pages in a real browser: the numbers are those injected, on wide and narrow, light
and dark screens.

Needs Debian's `chromium`, or another one named by `CHROMIUM`. `ADMIN_SCREENSHOTS=docs/images`
writes the pictures of the docs.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")

from django.conf import settings as django_settings
from django.db import connection
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, Page, ViewportSize, expect

from eventbus import bulk, kafka, producer
from eventbus.consume.consumer import EventConsumer
from eventbus.consume.lanes import Lanes
from eventbus.consume.leaving import Leaving
from eventbus.consume.processing import Processor
from eventbus.deadletters import replay
from eventbus.deadletters.writer import DeadLetterWriter
from eventbus.ids.snowflake import MAX_ID
from eventbus.models import PipelineMinute, ProcessedEvent, WorkerHeartbeat
from eventbus.watch.heartbeat import Heart
from feeds import handlers
from feeds.models import FeedEntry
from feeds.read import first_page
from posts.models import Post
from tests.admin import browser as browsers
from tests.admin.browser import DESKTOP, PHONE, Visitor, chromium
from tests.admin.pages import PIPELINE, inspector_of
from tests.eventbus import broker
from tests.eventbus.dead_letter_factories import an_entry
from tests.eventbus.events import eventually
from tests.factories import PostCreatedFactory, UserFollowedFactory, apply, follow_all

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        not browsers.CHROMIUM, reason="no chromium: apt install chromium, or name one in CHROMIUM"
    ),
]

READER = 2
# The second view may hear what came of the question of the first.
AWAY = re.compile("no answer within 0.8 s|unreachable")
VIEWS = [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def visit(
    browser: Browser,
    live_server: Any,
    admin_client: Client,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> Iterator[Visit]:
    """Open a window in which the administrator is logged in."""
    settings.API_FRONT = False  # this server is Django alone
    session = admin_client.cookies[django_settings.SESSION_COOKIE_NAME].value
    visitors: list[Visitor] = []

    def open_window(size: ViewportSize = DESKTOP, scheme: str = "light") -> Visitor:
        visitors.append(Visitor(browser, live_server.url, session, size, scheme))
        return visitors[-1]

    yield open_window
    for visitor in visitors:
        visitor.close()


@contextmanager
def a_worker(topic: str) -> Iterator[None]:
    """Run what `run_fanout` runs, in a thread."""

    def run() -> None:
        with Heart(consumer, processor.worker_id, processor.slowest).beating():
            consumer.run(Lanes(1, processor, DeadLetterWriter(kafka.FANOUT_GROUP), leaving))
        connection.close()

    leaving = Leaving()
    consumer = EventConsumer(topic, kafka.FANOUT_GROUP, 100, 0.01, leaving)
    processor = Processor(handlers.FeedHandlers())
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        leaving.begin("the end of the test")
        thread.join()


def publish(*facts: Any) -> None:
    for fact in facts:
        producer.publish(fact.to_event())


def a_feed_with_everything(settings: Any) -> dict[str, int]:
    """Give the reader a pushed, a pulled, a missing and a foreign entry; return their posts."""
    follow_all([READER], 1)
    pushed, missing, foreign = (
        PostCreatedFactory(),
        PostCreatedFactory(),
        PostCreatedFactory(author_id=7),
    )
    apply(pushed, missing, foreign)
    settings.FEED_STRATEGY = "pull"
    pulled = PostCreatedFactory(
        content="A post that its readers pull, because its author has very many of them"
    )
    apply(pulled)
    FeedEntry.objects.filter(user_id=READER, post_id=missing.post_id).delete()
    FeedEntry.objects.create(user_id=READER, post_id=foreign.post_id, author_id=7)
    return {
        "pushed": pushed.post_id,
        "pulled": pulled.post_id,
        "missing": missing.post_id,
        "foreign": foreign.post_id,
    }


@pytest.fixture
def feed_events(monkeypatch: pytest.MonkeyPatch) -> str:
    """Have this test's events in an empty topic whose name looks well in the docs."""
    topic = broker.create_topic(partitions=6, name=f"feed-events-{uuid4().hex[:4]}")
    monkeypatch.setattr(kafka, "FEED_EVENTS", topic)
    return topic


def look_at_the_lag(visitor: Visitor) -> Page:
    """Open the pipeline page, again if a busy broker has not told the lag in time."""
    known = visitor.page.locator('[data-group="fanout"] [data-total]')
    eventually(lambda: visitor.open(PIPELINE) and known.count())
    return visitor.page


def an_hour_of_history() -> None:
    """Have a worker of earlier, so that the chart has something to show."""
    now, worker_id = timezone.now().replace(second=0, microsecond=0), uuid4()
    PipelineMinute.objects.bulk_create(
        PipelineMinute(
            minute=now - timedelta(minutes=ago),
            worker_id=worker_id,
            type=name,
            events=events,
            seconds=events * 0.004,
        )
        for ago in range(2, 58)
        for name, events in (
            ("post.created", 900 + 97 * (ago % 7)),
            ("user.followed", 120 + 13 * (ago % 5)),
        )
    )


def test_the_pipeline_shows_what_was_injected(
    visit: Visit, feed_events: str, quick_joins: None
) -> None:
    kafka.create_topics()
    posts = [PostCreatedFactory(author_id=author) for author in (1, 1, 2, 3, 4, 5, 6)]
    follows = [UserFollowedFactory(follower_id=follower, followee_id=1) for follower in (2, 3, 4)]
    for number in range(3):
        an_entry(message=f"bad note {number}")
    with a_worker(feed_events):
        publish(*posts, *follows)
        eventually(lambda: ProcessedEvent.objects.count() == 10, seconds=60)
        eventually(_all_told)
        page = look_at_the_lag(visit())
        expect(page.locator('[data-type="post.created"] [data-hour]')).to_have_text("7")
        expect(page.locator('[data-type="user.followed"] [data-hour]')).to_have_text("3")
        expect(page.locator("svg title").first).to_contain_text("10 events processed in 60 minutes")
        expect(page.locator("#workers-table")).to_contain_text("0, 1, 2, 3, 4, 5")
        expect(page.locator("#workers-table .state")).to_have_text(["alive"])
        expect(page.locator('[data-group="fanout"] [data-total]')).to_have_text("0")
        expect(page.locator("#waiting")).to_have_text("3")
        expect(page.locator("#slowest-table tbody tr")).not_to_have_count(0)
        an_hour_of_history()
        for size, scheme in VIEWS:
            visitor = visit(size, scheme)
            visitor.open(PIPELINE)
            visitor.assert_well()
            visitor.shoot("pipeline")
    publish(*(PostCreatedFactory(author_id=author) for author in range(1, 6)))
    page = look_at_the_lag(visit())
    expect(page.locator("#workers-table .state")).to_have_text(["left"])
    expect(page.locator('[data-group="fanout"] [data-total]')).to_have_text("5")
    expect(page.locator('[data-group="fanout"] caption')).to_contain_text(
        "6 partitions without a worker"
    )


def _all_told() -> bool:
    row = WorkerHeartbeat.objects.first()
    return row is not None and row.records_done == 10 and len(row.partitions) == 6


def test_without_kafka_the_pipeline_is_there_and_says_so(visit: Visit, settings: Any) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    for size, scheme in VIEWS:
        visitor = visit(size, scheme)
        page = visitor.open(PIPELINE)
        expect(page.locator('[data-dependency="Kafka"] .state')).to_have_text(AWAY)
        expect(page.locator('[data-dependency="PostgreSQL"] .state')).to_have_text("ok")
        visitor.assert_well()


def test_the_inspector_shows_each_source_and_each_difference(visit: Visit, settings: Any) -> None:
    posts = a_feed_with_everything(settings)
    first_page.read(READER)
    for size, scheme in VIEWS:
        visitor = visit(size, scheme)
        page = visitor.open(inspector_of(READER))
        for kind, texts in {
            "pushed": ["pushed", "row", ""],
            "pulled": ["pulled", "–", ""],
            "missing": ["pushed", "–", "missing: no row"],
            "foreign": ["not in the feed", "row", "extra: its author is not followed"],
        }.items():
            expect(page.locator(f'[data-post="{posts[kind]}"] td').nth(1)).to_have_text(texts[0])
            expect(page.locator(f'[data-post="{posts[kind]}"] td').nth(2)).to_have_text(texts[1])
            expect(page.locator(f'[data-post="{posts[kind]}"] td').nth(3)).to_have_text(texts[2])
        expect(page.locator("#differences")).to_contain_text("2 differences")
        expect(page.locator("#cache")).to_contain_text("hit")
        expect(page.locator("#watched")).to_have_text("1")
        visitor.assert_well()
        visitor.shoot("inspector")


def test_a_feed_is_verified_and_mended_by_keyboard_alone(visit: Visit, settings: Any) -> None:
    a_feed_with_everything(settings)
    page = visit().open(inspector_of(READER))

    def press(button: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent.trim()") == button:
                break
        expect(page.get_by_role("button", name=button)).to_be_focused()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", "the focus cannot be seen"
        page.keyboard.press("Enter")

    press("Verify")
    expect(page.locator(".messagelist")).to_contain_text("Differs: 1 missing, 1 extra")
    press("Rebuild")
    expect(page.locator(".messagelist")).to_contain_text("Rebuilt.")
    press("Verify")
    expect(page.locator(".messagelist")).to_contain_text(
        "Verified: 2 stored entries equal the definition."
    )
    press("Drop the cached page")
    expect(page.locator("#cache")).to_contain_text("miss")


def test_screen_readers_are_told_what_is_to_be_seen(visit: Visit, feed_events: str) -> None:
    page = visit().open(PIPELINE)
    expect(page.get_by_role("heading", name="Pipeline", level=1)).to_be_visible()
    expect(page.get_by_role("img", name="0 events processed in 60 minutes")).to_be_visible()
    expect(page.get_by_role("table", name="What everything here rests on")).to_be_visible()
    expect(page.get_by_role("rowheader", name="PostgreSQL")).to_be_visible()
    expect(page.get_by_role("region", name="Workers")).to_be_visible()
    page = visit().open(inspector_of(READER))
    expect(page.get_by_role("group", name="Actions").get_by_role("button")).to_have_count(3)
    expect(page.get_by_label("User id:")).to_have_value(str(READER))


def test_the_way_from_the_start_to_a_users_feed(visit: Visit) -> None:
    apply(PostCreatedFactory(author_id=9))
    visitor = visit()
    page = visitor.open("/admin/")
    page.get_by_role("link", name="Pipeline").first.click()
    expect(page.get_by_role("heading", name="Pipeline", level=1)).to_be_visible()
    page.go_back()
    page.get_by_role("link", name="Feed inspector").click()
    page.locator("#searchbar").fill("9")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Feed of user 9")).to_be_visible()
    page.get_by_role("link", name=str(Post.objects.get().id)).click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


LONG = "payload.author_id: must be a decimal string of 1 to 2^63 - 1, " * 5
# The bottom of the lowest cell and the right end of the messages, of the rows of a list.
_ROWS = """
() => [...document.querySelectorAll("#result_list tbody tr")].map(row => [
  row.getBoundingClientRect().height,
  row.querySelector(".clamped").getBoundingClientRect().right,
])
"""


@pytest.mark.parametrize("name", ["deadletter", "deadlettergroup"])
def test_lists_of_dead_letters_show_their_messages_on_two_lines(visit: Visit, name: str) -> None:
    for number, error in enumerate(("builtins.ValueError", "django.db.utils.IntegrityError")):
        an_entry(message=LONG, error=error, event_id=MAX_ID - number)
    for size, scheme in VIEWS:
        visitor = visit(size, scheme)
        page = visitor.open(f"/admin/eventbus/{name}/")
        visitor.shoot(name)
        assert visitor.complaints == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        rows = page.evaluate(_ROWS)
        assert len(rows) == 2
        for height, right in rows:
            assert height < 60
            assert right <= DESKTOP["width"]
        if size == DESKTOP:
            expect(page.locator("#result_list tbody tr").first).to_contain_text(
                re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ")
            )
            shown = page.locator("#result_list th, #result_list td").last.bounding_box()
            assert shown is not None
            assert shown["x"] + shown["width"] <= size["width"]


def test_all_dead_letters_are_discarded_from_the_list_with_progress_to_be_seen(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PART_SECONDS", 0.0)
    monkeypatch.setattr(replay, "DISCARDED_AT_ONCE", 40)
    with connection.cursor() as cursor:
        an_entry()
        cursor.execute(_A_HUNDRED_MORE)
    visitor = visit()
    page = visitor.open("/admin/eventbus/deadletter/?state=waiting")
    page.locator("#action-toggle").check()
    page.get_by_role("button", name="Select all 121 dead letters").click()
    page.locator("select[name=action]").select_option("discard_selected")
    page.locator("button[name=index]").click()
    expect(page.locator("#content")).to_contain_text("Discard 121 dead letters?")
    page.locator("#reason").fill("a test")
    page.get_by_role("button", name="Discard").click()
    expect(page.locator(".messagelist")).to_contain_text("121 discarded.")
    assert page.url.endswith("?state=waiting")
    assert visitor.complaints == []
    assert len([url for url in visitor.requests if url.endswith("progress.js")]) == 3


_A_HUNDRED_MORE = """
INSERT INTO dead_letters (
    group_id, state, topic, headers, event_type, attempts, replays, discard_reason, last_failed_at
)
SELECT id, 'open', 'feed-events', '[]', '', 1, 0, '', now()
FROM dead_letter_groups, generate_series(1, 120)
"""


def test_the_api_docs_are_there_under_their_policy(visit: Visit) -> None:
    visitor = visit()
    page = visitor.open("/")
    expect(page.get_by_role("heading", name="Feed backend")).to_be_visible()
    expect(page.locator(".opblock").first).to_be_visible()
    assert visitor.complaints == []


def test_lists_and_follows_fit_every_window(visit: Visit) -> None:
    follow_all([READER, 3], 1)
    apply(*(PostCreatedFactory(author_id=1) for _ in range(3)))
    for size, scheme in VIEWS:
        visitor = visit(size, scheme)
        page = visitor.open("/admin/feeds/feed/follows/?user=1")
        expect(page.get_by_role("table", name="Those who follow 1")).to_contain_text("3")
        visitor.assert_well()
