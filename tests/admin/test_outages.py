"""The admin of a real API while a server is away: pages that say so, for those who look at them."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from django.contrib.auth.models import User

from eventbus import kafka
from eventbus.models import DeadLetter
from feedsite.embedded.kafka import KAFKA
from feedsite.embedded.postgres import POSTGRES
from tests.crash.outages import (
    EmbeddedServer,
    frozen,
    needs_embedded_broker,
    needs_embedded_postgres,
)
from tests.e2e.system import System, running, wait_until
from tests.eventbus.dead_letter_factories import an_entry

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

ENTRIES = "/admin/eventbus/deadletter/"
PASSWORD = "right-Password-7"
PUBLISH_SECONDS = 2
# Less than what a question asked at the admin may take.
ANSWER_SECONDS = 15


@pytest.fixture
def system(transactional_db: None, tmp_path: Path) -> Iterator[System]:
    kafka.create_topics()
    with running(tmp_path) as started:
        started.api(WORKERS="1", KAFKA_PUBLISH_TIMEOUT_MS=str(PUBLISH_SECONDS * 1_000))
        yield started


@pytest.fixture
def boss(system: System) -> Iterator[httpx.Client]:
    """Return the browser of someone who is logged in and may do everything."""
    User.objects.create_superuser("boss", password=PASSWORD)
    with httpx.Client(
        base_url=system.url, timeout=ANSWER_SECONDS, follow_redirects=True
    ) as browser:
        form = {"username": "boss", "password": PASSWORD, "next": "/admin/"}
        submit(browser, "/admin/login/", **form)
        yield browser


def submit(browser: httpx.Client, path: str, **form: str) -> httpx.Response:
    """Send a form as a page of the admin has it."""
    if "csrftoken" not in browser.cookies:
        browser.get(path)
    return browser.post(path, data={**form, "csrfmiddlewaretoken": browser.cookies["csrftoken"]})


def title_of(answer: httpx.Response) -> str:
    """Return the heading of a page; fails on anything that is none."""
    assert answer.headers["Content-Type"].startswith("text/html"), answer.text
    return str(re.findall("<h1>(.*?)</h1>", answer.text)[-1])


@needs_embedded_postgres
def test_without_postgresql_the_admin_says_so_on_a_page_and_is_back_with_it(
    system: System, boss: httpx.Client
) -> None:
    postgres = EmbeddedServer(POSTGRES)
    postgres.stop()
    try:
        assert_is_away(boss.get("/admin/login/?next=/admin/"))
        assert_is_away(submit(boss, ENTRIES, action="replay_selected", _selected_action="1"))
    finally:
        postgres.start()
    wait_until(lambda: boss.get(ENTRIES).status_code == 200)

    with frozen(POSTGRES):
        assert_is_away(boss.get("/admin/"))
    wait_until(lambda: boss.get(ENTRIES).status_code == 200)
    log = system.processes[0].log.read_text()
    assert "server_is_away" in log
    assert "Traceback" not in log
    assert log.count("Service Unavailable") == 1


@needs_embedded_broker
def test_without_kafka_a_replay_says_so_on_a_page_and_the_entries_stay_open(
    boss: httpx.Client, system: System
) -> None:
    entry = an_entry()
    chosen = {"action": "replay_selected", "_selected_action": str(entry.pk), "confirmed": "yes"}
    with frozen(KAFKA):
        answer = submit(boss, ENTRIES, **chosen)
    assert title_of(answer) == "Select dead letter to view"
    assert "1 not acknowledged by Kafka" in answer.text
    assert "The rest is still open." in answer.text
    entry.refresh_from_db()
    assert entry.state == DeadLetter.State.OPEN
    assert "Traceback" not in system.processes[0].log.read_text()


def assert_is_away(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert title_of(answer) == "Not at the moment"
    assert answer.headers["Retry-After"]
