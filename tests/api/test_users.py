"""`/users/{user_id}`: erasing a user, and what is held about one."""

import json
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from eventbus import envelope
from eventbus.database.sql import execute
from eventbus.models import Erasure, ProcessedEvent
from feeds import erasure
from feeds.models import Follow
from tests.api.server import ApiClient, Current
from tests.factories import (
    PostCreatedFactory,
    PostEditedFactory,
    UserBlockedFactory,
    UserErasedFactory,
    UserMutedFactory,
    apply,
    follow_all,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("current_api")]


def client(user: int = 1, scope: str = "") -> ApiClient:
    return Current.api.client(user, scope)


def lines(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(
    ("user", "scope", "status"),
    [(1, "", 202), (2, "", 403), (2, "users:export feeds:read", 403), (2, "users:erase", 202)],
)
def test_one_erases_oneself_or_with_the_scope_anyone(user: int, scope: str, status: int) -> None:
    answer = client(user, scope).delete("/users/1")
    body = answer.json()
    assert answer.status_code == status
    if status == 403:
        assert body["code"] == "not_your_user"
    else:
        assert set(body) == {"event_id", "user_id"}
        assert body["user_id"] == "1"
        assert answer.headers["Location"] == f"/events/{body['event_id']}"


def test_a_repeated_erasure_under_a_key_is_the_same_event() -> None:
    first, second = (client().delete("/users/1", Idempotency_Key="k").json() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("user_id", "status"), [("0", 404), ("-1", 404), ("x", 404), (str(2**63), 404), ("01", 404)]
)
def test_what_is_no_user_id_is_not_found(user_id: str, status: int) -> None:
    assert client().delete(f"/users/{user_id}").status_code == status
    assert client().get(f"/users/{user_id}/export").status_code == status


def test_an_erasure_is_pending_until_all_is_gone() -> None:
    follow_all([2], followee=1)
    fact = UserErasedFactory(user_id=1)
    apply(fact)
    ProcessedEvent.objects.create(event_id=fact.event_id, actor_id=1, type=fact.TYPE)
    seen = []
    while Erasure.objects.filter(finished_at=None).exists():
        told = client().get(f"/events/{fact.event_id}").json()
        assert told["state"] == "pending"
        seen.append(told["step"])
        assert erasure.erase_part()
    assert seen == list(erasure.STEPS)
    told = client().get(f"/events/{fact.event_id}").json()
    assert told == {
        "event_id": str(fact.event_id),
        "type": "user.erased",
        "state": "processed",
    }
    assert not Follow.objects.exists()
    assert client(2).get(f"/events/{fact.event_id}").status_code == 403


def test_an_export_has_a_line_for_all_that_is_held() -> None:
    follow_all([2], followee=1)
    follow_all([1], followee=3)
    posts = [PostCreatedFactory(author_id=1, data='{"n": [1, "ü"]}') for _ in range(450)]
    apply(*posts, PostCreatedFactory(author_id=2), UserMutedFactory(user_id=1, muted_id=9))
    apply(UserBlockedFactory(blocker_id=1, blocked_id=8))
    apply(PostEditedFactory(author_id=1))  # of a post that is not there yet
    client().delete("/posts/5", Idempotency_Key="k")
    client().put("/follows/3", Idempotency_Key="k")
    answer = client().get("/users/1/export")
    told = lines(answer)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert [line["kind"] for line in told] == [
        "user",
        *["post"] * 450,
        "waiting_edit",
        "follows",
        "follower",
        "mutes",
        "blocks",
        "idempotency_key",
        "end",
    ]
    assert [line["id"] for line in told[1:451]] == [str(post.post_id) for post in posts]
    assert told[1] == {
        "kind": "post",
        "id": str(posts[0].post_id),
        "content": posts[0].content,
        "data": {"n": [1, "ü"]},
        "created_at": envelope.format_time(posts[0].created_at),
        "edited_at": None,
    }


def test_an_export_of_someone_unknown_is_empty_and_whole() -> None:
    answer = client(77).get("/users/77/export")
    assert lines(answer) == [{"kind": "end", "user_id": "77"}]


@pytest.mark.parametrize(
    ("scope", "status"), [("", 403), ("users:erase feeds:read", 403), ("users:export", 200)]
)
def test_the_export_of_someone_else_needs_the_scope(scope: str, status: int) -> None:
    assert client(2, scope).get("/users/1/export").status_code == status


def test_the_head_of_an_export_costs_nothing() -> None:
    answer = client().head("/users/1/export")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_client_that_leaves_an_export_holds_nothing_up() -> None:
    apply(*[PostCreatedFactory(author_id=1, content="x" * 5_000) for _ in range(1_000)])
    headers = client()._headers
    for _ in range(8):
        with client()._http.stream("GET", "/users/1/export", headers=headers) as answer:
            assert next(answer.iter_bytes())
    assert lines(client().get("/users/1/export"))[-1]["kind"] == "end"


def test_a_large_export_for_a_client_that_does_not_read_takes_no_memory() -> None:
    execute(
        "INSERT INTO posts (id, author_id, content, created_at) "
        "SELECT n, 1, repeat('x', 5000), now() FROM generate_series(1, 16000) AS n"
    )
    size = len(client().get("/users/1/export").content)
    before = resident_bytes()
    request = "GET /users/1/export HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", Current.api.port), timeout=30) as stalled:
        stalled.send(request.format(client()._headers["Authorization"]).encode())
        head = stalled.recv(2_000)
        assert f"content-length: {size}".encode() in head
        assert resident_bytes() - before < size / 2
    assert size > 16_000 * 5_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
