"""`PUT /feeds/{user}/seen`, and what the first page and `/new` make of it."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest
from django_redis import get_redis_connection
from pytest_django import Settings

from eventbus.ids import clock
from eventbus.ids.snowflake import MAX_ID, compose
from feeds.seen import MAX_AHEAD_MS, FeedSeen
from tests.api.hostile import json_suite, naughty_strings
from tests.api.server import ApiServer
from tests.e2e.real_data import DATA
from tests.factories import PostCreatedFactory
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

with_data = pytest.mark.skipif(not DATA.exists(), reason="the data is not beside the repository")

_users = count(80_000)


def mark(api: ApiServer, body: object, user: int = 1, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api.client(user).request(
        "PUT", f"/feeds/{user}/seen", {"Content-Type": "application/json", **headers}, content
    )


def told(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"code", "detail"}
    return answer.status_code, body["code"]


def test_what_is_marked_is_the_fact_that_a_worker_applies(api: ApiServer) -> None:
    user, worker = next(_users), Worker()
    first, second = (PostCreatedFactory(author_id=user) for _ in range(2))
    worker.process(first, second)
    assert told(api.client(user).get(f"/feeds/{user}/new")) == (409, "nothing_seen")
    answer = mark(api, {"post_id": str(first.post_id)}, user)
    body = answer.json()
    assert (answer.status_code, set(body)) == (202, {"event_id", "user_id", "post_id"})
    assert (body["user_id"], body["post_id"]) == (str(user), str(first.post_id))
    assert answer.headers["Location"] == f"/events/{body['event_id']}"
    worker.process(FeedSeen(int(body["event_id"]), user, first.post_id))
    for _ in range(3):  # at first from PostgreSQL, then from Redis, then from the loop
        page = api.client(user).get(f"/feeds/{user}").json()
        assert (page["seen"], page["unread"]) == (str(first.post_id), 1)
        new = api.client(user).get(f"/feeds/{user}/new").json()
        assert new == {"count": 1, "newest_id": str(second.post_id)}


def test_the_front_and_django_give_one_page(servers: dict[str, ApiServer]) -> None:
    user, worker = next(_users), Worker()
    for number in range(3):
        post = PostCreatedFactory(author_id=user)
        worker.process(post)
        for path in (f"/feeds/{user}", f"/feeds/{user}?limit=2", f"/feeds/{user}/new"):
            on, off = (server.client(user).get(path) for server in servers.values())
            ports = [str(server.port) for server in servers.values()]
            assert on.text.replace(ports[0], "") == off.text.replace(ports[1], "")
            assert on.status_code == off.status_code
        if number:
            worker.process(FeedSeen(post.event_id, user, post.post_id - 1))


def test_only_its_own_user_marks_a_feed(api: ApiServer) -> None:
    assert api.anonymous().put("/feeds/1/seen").status_code == 401
    for scope in ("", "feeds:read"):
        assert told(api.client(9, scope).put("/feeds/1/seen")) == (403, "not_your_feed")
    assert told(api.client(1).get("/feeds/1/seen")) == (405, "method_not_allowed")
    assert told(api.client(1).put("/feeds/0/seen")) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b'{"post_id": NaN}', 400, "malformed_json"),
        (b"[" * 100_000, 400, "malformed_json"),
        (b"[]", 422, "not_an_object"),
        (b'"5"', 422, "not_an_object"),
        (b"null", 422, "not_an_object"),
        (b"{}", 422, "post_id_required"),
        (b'{"seen": "5"}', 422, "post_id_required"),
        (b'{"post_id": null}', 422, "invalid_post_id"),
        (b'{"post_id": 5}', 422, "invalid_post_id"),
        (b'{"post_id": 5.0}', 422, "invalid_post_id"),
        (b'{"post_id": true}', 422, "invalid_post_id"),
        (b'{"post_id": ["5"]}', 422, "invalid_post_id"),
        (b'{"post_id": ""}', 422, "invalid_post_id"),
        (b'{"post_id": "0"}', 422, "invalid_post_id"),
        (b'{"post_id": "05"}', 422, "invalid_post_id"),
        (b'{"post_id": "-5"}', 422, "invalid_post_id"),
        (b'{"post_id": "5\\u0000"}', 422, "invalid_post_id"),
        ('{"post_id": "٥"}'.encode(), 422, "invalid_post_id"),
        (b'{"post_id": "9223372036854775808"}', 422, "invalid_post_id"),
        (json.dumps({"post_id": str(MAX_ID)}).encode(), 422, "post_id_in_the_future"),
        (b'{"post_id": "' + b"5" * 200_000 + b'"}', 413, "payload_too_large"),
    ],
)
def test_a_bad_body_is_refused_with_a_code(
    api: ApiServer, body: bytes, status: int, code: str
) -> None:
    assert told(mark(api, body)) == (status, code)


def test_an_id_may_be_ahead_as_far_as_ids_are_minted_ahead(api: ApiServer) -> None:
    now = clock.host_ms()
    near, far = (compose(now + MAX_AHEAD_MS + more, 0, 1) for more in (-5_000, 60_000))
    assert mark(api, {"post_id": str(near)}).status_code == 202
    assert told(mark(api, {"post_id": str(far)})) == (422, "post_id_in_the_future")


@with_data
def test_the_json_test_suite_and_naughty_strings_mark_nothing(api: ApiServer) -> None:
    for name, body in json_suite():
        answer = mark(api, body)
        assert answer.status_code in (400, 413, 422), name
        malformed = told(answer)[1] in ("malformed_json", "payload_too_large")
        assert malformed == name.startswith("n_") or name.startswith("i_"), name
    for text in naughty_strings()[::5]:
        if text != "1":
            assert told(mark(api, {"post_id": text})) == (422, "invalid_post_id"), text


def test_a_repeated_mark_is_one_event(api: ApiServer) -> None:
    user = next(_users)
    first, again = (mark(api, {"post_id": "5"}, user, Idempotency_Key="k") for _ in range(2))
    assert first.json() == again.json()
    other = mark(api, {"post_id": "6"}, user, Idempotency_Key="k")
    assert told(other) == (422, "idempotency_key_reused")


@pytest.fixture
def limited(settings: Settings) -> Iterator[None]:
    settings.API_POST_RATE = "1/min"
    yield
    for key in get_redis_connection("default").scan_iter("rate:*"):
        get_redis_connection("default").delete(key)


@pytest.mark.usefixtures("limited")
def test_a_mark_counts_as_a_write(api: ApiServer) -> None:
    user = next(_users)
    answers: list[Any] = [mark(api, {"post_id": "5"}, user) for _ in range(2)]
    assert answers[0].headers["RateLimit"].startswith('"writes";r=0;')
    assert told(answers[1]) == (429, "throttled")
