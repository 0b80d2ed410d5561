"""`Idempotency-Key` and the outcome of events: a write repeated is a write done once, and one can
ask about it.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from django.db import connection
from django.test import Client
from pytest_django import Settings

from eventbus import envelope, producer
from eventbus.exceptions import IdempotencyKeyReused
from eventbus.ids import clock, idempotency
from eventbus.ids.snowflake import EPOCH_MS, compose
from eventbus.models import DeadLetter, IdempotencyKey, ProcessedEvent
from feedsite.authentication import issue_token
from tests.eventbus import broker
from tests.eventbus.dead_letter_factories import an_entry

pytestmark = pytest.mark.django_db(transaction=True)


def send(
    method: str, path: str, body: object = None, *, key: str | None = None, user: int = 7
) -> Any:
    headers = {"Authorization": f"Bearer {issue_token(user, '', 60)}"} | (
        {"Idempotency-Key": key} if key else {}
    )
    return Client(headers=headers).generic(
        method, path, b"" if body is None else orjson.dumps(body), content_type="application/json"
    )


def test_the_same_key_and_body_give_the_same_answer_and_one_event(feed_events: str) -> None:
    first, again = (send("POST", "/posts", {"content": "once"}, key="k1") for _ in range(2))
    assert first.status_code == again.status_code == 202
    assert first.content == again.content
    assert {envelope.decode(r.value, r.key).event_id for r in broker.read_all(feed_events)} == {
        int(first.json()["event_id"])
    }


def test_the_same_key_with_another_body_is_refused(feed_events: str) -> None:
    send("POST", "/posts", {"content": "once"}, key="k1")
    refused = send("POST", "/posts", {"content": "other"}, key="k1")
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert len(broker.read_all(feed_events)) == 1


def test_keys_of_different_users_do_not_meet(feed_events: str) -> None:
    first = send("POST", "/posts", {"content": "mine"}, key="k1", user=7)
    second = send("POST", "/posts", {"content": "yours"}, key="k1", user=8)
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] != second.json()["id"]


def test_requests_at_the_same_time_make_one_post(feed_events: str) -> None:
    def post(_number: int) -> Any:
        try:
            return send("POST", "/posts", {"content": "once"}, key="k1").json()["id"]
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(post, range(16)))) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/follows/9"),
        ("DELETE", "/follows/9"),
        ("PUT", "/mutes/9"),
        ("DELETE", "/mutes/9"),
        ("PUT", "/blocks/9"),
        ("DELETE", "/blocks/9"),
    ],
)
def test_every_write_takes_a_key(feed_events: str, method: str, path: str) -> None:
    first, again = (send(method, path, key="k1") for _ in range(2))
    assert (first.status_code, first.content) == (202, again.content)


def test_a_write_that_kafka_did_not_take_keeps_its_ids_for_the_next_try(
    settings: Settings, own_producer: None, feed_events: str
) -> None:
    servers = settings.KAFKA_BOOTSTRAP_SERVERS
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 200
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    failed = send("POST", "/posts", {"content": "once"}, key="k1")
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "1")
    reserved = IdempotencyKey.objects.get()
    producer.close()
    settings.KAFKA_BOOTSTRAP_SERVERS, settings.KAFKA_PUBLISH_TIMEOUT_MS = servers, 5_000
    assert send("POST", "/posts", {"content": "once"}, key="k1").json()["id"] == str(
        reserved.object_id
    )


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "naïve"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    answer = Client(headers={"Authorization": f"Bearer {issue_token(7, '', 60)}"}).post(
        "/posts",
        {"content": "x"},
        content_type="application/json",
        headers={"Idempotency-Key": key},
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key")


def test_reserving_is_one_row_and_tells_a_reused_key() -> None:
    ids = idempotency.reserve(7, "k", "request")
    assert idempotency.reserve(7, "k", "request") == ids
    with pytest.raises(IdempotencyKeyReused):
        idempotency.reserve(7, "k", "another request")


def test_a_bulk_reserves_the_ids_of_all_its_events_in_one_row(feed_events: str) -> None:
    users = [str(user) for user in (9, 8, 9, 10)]
    first, again = (send("POST", "/follows", {"followee_ids": users}, key="k1") for _ in range(2))
    assert first.content == again.content
    told = {(entry["followee_id"], entry["event_id"]) for entry in first.json()["results"]}
    stored = [envelope.decode(record.value, record.key) for record in broker.read_all(feed_events)]
    assert sorted((str(event.key), str(event.event_id)) for event in stored) == sorted([*told] * 2)
    row = IdempotencyKey.objects.get()
    assert row.object_id - row.event_id == 3
    assert all(row.event_id <= event.event_id <= row.object_id for event in stored)
    other = idempotency.fresh_run(1)[0]
    assert other > row.object_id


def test_reserving_a_run_is_one_row_and_tells_a_reused_key() -> None:
    ids = idempotency.reserve_run(7, "k", "request", 100)
    assert len(ids) == 100
    assert idempotency.reserve_run(7, "k", "request", 100) == ids
    with pytest.raises(IdempotencyKeyReused):
        idempotency.reserve_run(7, "k", "another request", 100)


def outcome(event_id: int) -> tuple[int, Any]:
    answer = send("GET", f"/events/{event_id}")
    return answer.status_code, answer.json().get("state")


def test_an_event_is_pending_then_processed(feed_events: str) -> None:
    event_id = int(send("POST", "/posts", {"content": "x"}).json()["event_id"])
    assert outcome(event_id) == (200, "pending")
    ProcessedEvent.objects.create(event_id=event_id, type="post.created")
    assert send("GET", f"/events/{event_id}").json() == {
        "event_id": str(event_id),
        "type": "post.created",
        "state": "processed",
    }


def test_an_event_is_dead_lettered_until_a_replay_succeeds() -> None:
    entry = an_entry(event_id=compose(clock.host_ms(), 1, 1))
    assert outcome(entry.event_id or 0) == (200, "dead_lettered")
    DeadLetter.objects.close_replayed([entry.id])
    ProcessedEvent.objects.create(event_id=entry.event_id or 0, type="note.taken")
    assert outcome(entry.event_id or 0) == (200, "processed")


@pytest.mark.parametrize(
    "ms", [EPOCH_MS + 1, clock.host_ms() + 3_600_000], ids=["before", "future"]
)
def test_ids_from_before_the_retention_or_from_the_future_are_unknown(ms: int) -> None:
    assert outcome(compose(ms, 1, 1)) == (404, None)
