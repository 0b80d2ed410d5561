"""What the logs of real processes hold: the ids of each event on both sides, and nothing that
people wrote.
"""

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from django.conf import settings

from eventbus import kafka, producer
from eventbus.models import DeadLetter
from feeds import live_tickets
from feedsite.authentication import issue_token
from feedsite.embedded import state
from feedsite.embedded.kafka import KAFKA
from tests.crash import outages
from tests.e2e.system import System, settled, wait_until
from tests.observability.processes import Worker
from tests.observability.traffic import CURSED, curse

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
LOGS = {"LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG"}


@pytest.fixture
def talkative(idle_system: System) -> System:
    """A system whose API logs all it ever would, as JSON."""
    idle_system.api(**LOGS)
    return idle_system


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def lines_about(log: Path, event_id: str) -> dict[str, dict[str, Any]]:
    """Return the lines that name the event, by what they say."""
    return {line["event"]: line for line in lines(log) if line.get("event_id") == event_id}


def post(system: System, content: str, **headers: str) -> httpx.Response:
    with system.client(1) as client:
        answer = client.post("/posts", json={"content": content}, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer


def test_every_line_about_an_event_names_it_and_its_request_and_trace_on_both_sides(
    talkative: System,
) -> None:
    worker = Worker(talkative, "run_fanout", **LOGS)
    headers = {"X-Request-ID": "request-1", "traceparent": TRACEPARENT}
    answer = post(talkative, "a post", **headers)
    assert answer.headers["X-Request-ID"] == "request-1"
    event_id = answer.json()["event_id"]
    wait_until(lambda: "event_processed" in lines_about(worker.log, event_id))
    with curse():
        failing = post(talkative, CURSED, **headers).json()["event_id"]
        wait_until(lambda: "dead_letter" in lines_about(worker.log, failing))

    api = talkative.processes[0].log
    found = [lines_about(log, event) for log in (api, worker.log) for event in (event_id, failing)]
    assert [set(about) for about in found] == [
        {"event_published"},
        {"event_published"},
        {"event_processed"},
        {"events_failed", "dead_letter"},
    ]
    for about in found:
        for line in about.values():
            assert (line["request_id"], line["trace_id"]) == ("request-1", TRACE_ID), line


def test_a_request_without_an_id_or_with_an_unusable_one_gets_one(talkative: System) -> None:
    given = {
        "X-Request-ID": "no spaces, please",
        "traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01",
    }
    answers = [post(talkative, "a post"), post(talkative, "a post", **given)]
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(ids) == 2
    assert all(len(request_id) == 32 for request_id in ids)
    published = [
        lines_about(talkative.processes[0].log, answer.json()["event_id"]) for answer in answers
    ]
    assert {about["event_published"]["request_id"] for about in published} == ids
    assert all("trace_id" not in about["event_published"] for about in published)


def test_a_line_about_a_batch_names_its_events(talkative: System) -> None:
    """Two events of one author that fail together, for a reason that lies in one of them."""
    with curse():
        sent = {post(talkative, content).json()["event_id"] for content in ("a post", CURSED)}
        worker = Worker(talkative, "run_fanout", **LOGS)
        wait_until(
            lambda: (
                settled({int(event) for event in sent}) or "dead_letter" in worker.log.read_text()
            )
        )
    failed = [line for line in lines(worker.log) if line["event"] == "events_failed"]
    assert set(failed[0].get("event_ids", [])) == sent
    assert len(failed[0]["request_ids"]) == 2
    assert failed[-1]["event_id"] in sent


def test_no_log_holds_what_people_wrote_or_a_token(talkative: System) -> None:
    secret = f"nobody else's business {uuid4()}"
    token = issue_token(7, "", 60)
    ticket = live_tickets.issue(7)
    workers = [Worker(talkative, command, **LOGS) for command in ("run_fanout", "run_dlq")]
    for authorization in (f"Bearer {token}", f"Bearer {token}x", token):
        with httpx.Client(
            base_url=talkative.url, headers={"Authorization": authorization}
        ) as client:
            client.post("/posts", json={"content": secret}, headers={"Idempotency-Key": secret})
            client.post(
                "/posts",
                content=f'{{"content": "{secret}"',
                headers={"Content-Type": "application/json"},
            )
            client.post("/posts", json={"content": secret * 200})
            client.post("/posts", json={"content": secret, "data": {"note": secret}})
            client.patch("/posts/1", json={"content": secret, "data": {"note": secret}})
            client.get("/feeds/7", params={"cursor": secret})
            client.get("/feeds/7/live", params={"ticket": ticket, "since": secret})
            log_in(client, secret)
    for value in (secret, f'{{"event_id": "1", "payload": "{secret}"}}'):
        producer.publish_record(
            kafka.FEED_EVENTS, b"7", value.encode(), [("note", secret.encode())]
        )
    wait_until(lambda: DeadLetter.objects.count() == 2)
    passwords = [record.password for record in state.read(outages.data_dir()).values()]
    for log in [talkative.processes[0].log, *(worker.log for worker in workers)]:
        text = log.read_text()
        assert text
        assert secret.rpartition(" ")[2] not in text, log
        assert token not in text
        assert ticket not in text
        assert token.rpartition(".")[2] not in text
        assert not any(password in text for password in passwords)
        assert settings.SECRET_KEY not in text
        assert settings.JWT_SIGNING_KEY not in text


def log_in(client: httpx.Client, password: str) -> None:
    """Try to log in to the admin with a wrong password."""
    page = client.get("/admin/login/").raise_for_status()
    fields = {"csrfmiddlewaretoken": page.cookies["csrftoken"], "username": "nobody"}
    refused = client.post("/admin/login/", data={**fields, "password": password})
    assert refused.status_code in (200, 429), refused.text


@outages.needs_embedded_broker
def test_while_kafka_is_away_a_worker_says_so_once_and_when_it_is_back(talkative: System) -> None:
    worker = Worker(talkative, "run_fanout", LOG_FORMAT="json")
    wait_until(lambda: worker.get("/readyz").status_code == 200)
    before = len(lines(worker.log))
    broker = outages.EmbeddedServer(KAFKA)
    broker.kill()
    try:
        wait_until(lambda: "server_is_away" in worker.log.read_text())
        time.sleep(3)
    finally:
        broker.start()
        producer.close()
        kafka.create_topics()
    said = [line["event"] for line in lines(worker.log)[before:]]
    assert said.count("server_is_away") == 1
    # Beside it the first of the many that say so in other words, and that its partitions are lost.
    assert len(said) <= 4, said
    wait_until(lambda: "server_is_back" in worker.log.read_text())
