"""The HTTP interface, row by row: statuses, codes, bodies and headers."""

import json
import subprocess
import sys
import tarfile
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import InterfaceError, ProgrammingError, connection
from pytest_django import Settings

from eventbus import producer
from eventbus.envelope import format_time
from eventbus.ids import clock
from eventbus.ids.snowflake import compose, time_of
from eventbus.models import ProcessedEvent
from feedsite.api import exception_handler
from posts.data import text_of
from tests.api.server import ApiClient, Current
from tests.e2e.real_data import DATA
from tests.e2e.system import environment, wait_until
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserBlockedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    apply,
    follow_all,
)
from tests.feeds.worker import Worker
from tests.posts.test_data import REFUSED

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("current_api")]

MAX_ID = 2**63 - 1
POST_KEYS = ["id", "author_id", "content", "data", "created_at", "edited_at"]


def client(user: int = 1, scope: str = "") -> ApiClient:
    return Current.api.client(user, scope)


def post(
    body: bytes | dict[str, Any], user: int = 1, content_type: str = "application/json"
) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client(user).post("/posts", data, content_type=content_type)


def told(answer: Any) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"code", "detail"}
    return answer.status_code, body["code"]


def test_an_accepted_post_tells_its_ids_and_where_its_event_is() -> None:
    answer = post({"content": "  hello 世界 \n"}, user=MAX_ID)
    body = answer.json()
    assert answer.status_code == 202
    assert set(body) == {"event_id", *POST_KEYS}
    assert (body["author_id"], body["content"]) == (str(MAX_ID), "hello 世界")
    assert (body["data"], body["edited_at"]) == (None, None)
    assert answer.headers["Location"] == f"/events/{body['event_id']}"
    assert body["created_at"].endswith("Z")
    assert len(body["created_at"]) == len("2026-01-02T12:00:00.345Z")


def test_the_author_comes_from_the_token_alone() -> None:
    assert post({"content": "x", "author_id": "2"}, user=1).json()["author_id"] == "1"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b"", 400, "malformed_json"),
        (b'{"content": "\\ud800"}', 400, "malformed_json"),
        (b'{"content": NaN}', 400, "malformed_json"),
        (b"[" * 100_000, 400, "malformed_json"),
        (b"[]", 422, "not_an_object"),
        (b"{}", 422, "content_required"),
        (b'{"content": 5}', 422, "content_required"),
        (b'{"content": null}', 422, "content_required"),
        (b'{"content": " \\n\\u2003 "}', 422, "content_empty"),
        (b'{"content": "a\\u0000b"}', 422, "content_has_nul"),
        (json.dumps({"content": "世" * 5_001}).encode(), 422, "content_too_long"),
        (b'{"content": "' + b"x" * 200_000 + b'"}', 413, "payload_too_large"),
        (b'{"data": null}', 422, "content_required"),
        (b'{"content": "", "data": null}', 422, "content_empty"),
        (b'{"content": null, "data": {}}', 422, "content_required"),
        (b'{"content": "a\\u0000b", "data": {}}', 422, "content_has_nul"),
        (b'{"data": {}, "data": {}}', 422, "duplicate_key"),
        (b'{"content": "a", "content": "b", "data": {}}', 422, "duplicate_key"),
        (b'{"d\\u0061ta": {"a": 1, "a": 2}}', 422, "duplicate_key"),
        (b'{"data": {}, "other": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", 422, "data_too_deep"),
        (b'{"data": {}, "other": ' + b"[" * 10 + b"]" * 10 + b"}", 422, "data_too_deep"),
        (b'{"data": {"a": [' + b"1.50," * 20_000 + b"1]}}", 422, "data_too_large"),
    ],
)
def test_a_bad_body_is_refused_with_a_code(body: bytes, status: int, code: str) -> None:
    assert told(post(body)) == (status, code)


def test_bad_data_is_refused_with_a_code() -> None:
    for text, code in REFUSED:
        status = 400 if code == "malformed_json" else 422
        body = b'{"data": ' + text.encode("utf-8", "surrogatepass") + b"}"
        assert told(post(body)) == (status, code), text[:80]


@pytest.mark.parametrize("content", [None, "", "  ", "text"])
def test_data_is_shown_wherever_the_post_is(content: str | None) -> None:
    data = {"z": [1, 2.50, -0.0, 1e-7], "a": {"\n": None, "": "世界\u2028"}, "data": {"data": {}}}
    written = {"data": data} if content is None else {"content": content, "data": data}
    accepted = post(written).json()
    assert accepted["data"] == data
    shown = accepted["content"]
    assert shown == (content or "").strip()

    kept = PostCreatedFactory(author_id=78, content=shown, data=text_of(data))
    apply(kept, PostCreatedFactory(author_id=78))
    found = client(78).get(f"/posts/{kept.post_id}").json()
    assert list(found) == POST_KEYS
    assert (found["content"], found["data"], found["edited_at"]) == (shown, data, None)
    for path in ("/feeds/78", "/feeds/78", "/feeds/78?limit=5", "/users/78/posts"):
        other, same = client(78).get(path).json()["results"]
        assert same == found
        assert other["data"] is None


def test_an_idempotency_key_is_for_one_content_and_data() -> None:
    def ask(body: dict[str, Any]) -> Any:
        raw = json.dumps(body).encode()
        return client(79).post("/posts", raw, Idempotency_Key="once")

    body = {"content": "x", "data": {"a": 1}}
    assert ask(body).json()["id"] == ask(body).json()["id"]
    others: list[dict[str, Any]] = [
        {"content": "x"},
        {"content": "x", "data": {}},
        {"content": "x", "data": {"a": 2}},
        {"content": "y", "data": {"a": 1}},
        {"content": 'x{"a":1}'},
    ]
    for other in others:
        assert told(ask(other)) == (422, "idempotency_key_reused")


def test_5000_characters_are_fine_however_they_are_written() -> None:
    assert post({"content": "🌍" * 5_000}).status_code == 202  # 12 bytes each as escapes


def test_other_media_types_and_methods_are_refused() -> None:
    assert told(post(b"content=x", content_type="application/x-www-form-urlencoded")) == (
        415,
        "unsupported_media_type",
    )
    assert told(client().put("/posts")) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["/nope", "/posts/0", "/posts/abc", "/feeds/9223372036854775808", "/posts/01"]
)
def test_what_is_not_there_is_a_json_404(path: str) -> None:
    assert told(client().get(path)) == (404, "not_found")


@pytest.mark.skipif(not DATA.exists(), reason="the JSON test suite is not beside the repository")
def test_the_json_test_suite() -> None:
    with tarfile.open(DATA / "json_test_suite.tar.gz") as suite:
        for member in suite:
            kind = member.name.rpartition("/")[2][:2]
            file = suite.extractfile(member)
            if file is None or kind not in ("y_", "n_", "i_"):
                continue
            answer = post(file.read())
            assert answer.status_code < 500, member.name
            refused = (
                told(answer)[1] in ("malformed_json", "payload_too_large")
                if answer.status_code != 202
                else False
            )
            assert refused == (kind == "n_") or kind == "i_", member.name


@pytest.mark.skipif(not DATA.exists(), reason="the naughty strings are not beside the repository")
def test_naughty_strings_are_taken_as_they_are() -> None:
    strings = [text.strip() for text in json.loads((DATA / "blns.json").read_text())]
    for text in [text for text in strings if text and "\0" not in text][::5]:
        assert post({"content": text}).json()["content"] == text


def test_reading_a_post() -> None:
    apply(kept := PostCreatedFactory(content="kept"), gone := PostCreatedFactory())
    apply(PostDeletedFactory(post_id=gone.post_id))
    assert client().get(f"/posts/{kept.post_id}").json()["content"] == "kept"
    assert told(client().get(f"/posts/{gone.post_id}")) == (410, "gone")
    assert told(client().get("/posts/12345")) == (404, "post_not_found")


def test_deleting_a_post() -> None:
    apply(mine := PostCreatedFactory(author_id=1))
    assert client(1).delete(f"/posts/{mine.post_id}").status_code == 202
    assert told(client(2).delete(f"/posts/{mine.post_id}")) == (403, "not_the_author")
    assert told(client(1).delete("/posts/12345")) == (404, "post_not_found")


def edit(post_id: int, body: bytes | dict[str, Any], user: int = 1, key: str = "") -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Idempotency_Key": key} if key else {}
    return client(user).patch(f"/posts/{post_id}", raw, **headers)


def test_editing_a_post() -> None:
    apply(mine := PostCreatedFactory(author_id=1, content="old", data='{"a": 1}'))
    apply(gone := PostCreatedFactory(author_id=1))
    apply(PostDeletedFactory(post_id=gone.post_id))
    answer = edit(mine.post_id, {"content": " new \n"})
    body = answer.json()
    assert answer.status_code == 202
    assert set(body) == {"id", "event_id", "edited_at", "content"}
    assert (body["id"], body["content"]) == (str(mine.post_id), "new")
    assert answer.headers["Location"] == f"/events/{body['event_id']}"
    assert body["edited_at"] == format_time(time_of(int(body["event_id"])))
    assert edit(mine.post_id, {"data": {"b": 1.50}}).json()["data"] == {"b": 1.5}
    assert edit(mine.post_id, {"data": None}).json()["data"] is None
    assert told(edit(mine.post_id, {"content": "x"}, user=2)) == (403, "not_the_author")
    assert told(edit(gone.post_id, {"content": "x"}, user=2)) == (403, "not_the_author")
    assert told(edit(gone.post_id, {"content": "x"})) == (410, "gone")
    assert told(edit(12345, {"content": "x"})) == (404, "post_not_found")
    anonymous = Current.api.anonymous().patch(f"/posts/{mine.post_id}", b'{"content": "x"}')
    assert anonymous.status_code == 401


BAD_EDITS = [
    (b"", 400, "malformed_json"),
    (b"{", 400, "malformed_json"),
    (b"[]", 422, "not_an_object"),
    (b"{}", 422, "nothing_to_edit"),
    (b'{"text": "x"}', 422, "nothing_to_edit"),
    (b'{"content": null}', 422, "content_required"),
    (b'{"content": 5}', 422, "content_required"),
    (b'{"content": " "}', 422, "content_empty"),
    (b'{"content": "", "data": null}', 422, "content_empty"),
    (b'{"content": "a\\u0000b"}', 422, "content_has_nul"),
    (b'{"content": "' + b"x" * 5_001 + b'"}', 422, "content_too_long"),
    (b'{"content": "x", "data": []}', 422, "data_not_an_object"),
    (b'{"data": {"a": 1, "a": 2}}', 422, "duplicate_key"),
    (b'{"data": {"a": 1e300}}', 422, "data_number"),
    (b'{"content": "' + b"x" * 200_000 + b'"}', 413, "payload_too_large"),
]


def test_a_bad_edit_is_refused_with_a_code() -> None:
    apply(mine := PostCreatedFactory(author_id=1))
    for body, status, code in BAD_EDITS:
        assert told(edit(mine.post_id, body)) == (status, code), body[:80]


def test_a_post_keeps_content_or_data() -> None:
    rich = PostCreatedFactory(author_id=1, content="", data="{}")
    both = PostCreatedFactory(author_id=1, content="x", data="{}")
    apply(rich, both)
    assert told(edit(rich.post_id, {"data": None})) == (422, "content_empty")
    assert edit(rich.post_id, {"data": None, "content": "x"}).status_code == 202
    assert edit(both.post_id, {"content": ""}).status_code == 202
    assert edit(both.post_id, {"data": None}).status_code == 202


def test_an_edited_post_is_shown_edited_wherever_it_is() -> None:
    apply(post := PostCreatedFactory(author_id=76, content="old", data='{"a": 1}'))
    apply(PostCreatedFactory(author_id=76))
    worker = Worker()
    paths = ("/feeds/76", "/feeds/76", "/feeds/76?limit=5", "/users/76/posts")
    changes: list[dict[str, Any]] = [{"content": "new"}, {"data": {"b": [2]}}, {"data": None}]
    content, data = "old", {"a": 1}
    for change in changes:
        for path in paths:
            client(76).get(path)
        told = edit(post.post_id, change, user=76).json()
        content = change.get("content", content)
        data = change.get("data", data)
        changed = PostEditedFactory(
            event_id=int(told["event_id"]),
            post_id=post.post_id,
            author_id=76,
            content=change.get("content"),
            changes_data="data" in change,
            data=json.dumps(change["data"]) if change.get("data") else None,
        )
        worker.process(changed)
        found = client(76).get(f"/posts/{post.post_id}").json()
        shown = (found["content"], found["data"], found["edited_at"])
        assert shown == (content, data, told["edited_at"])
        for path in paths:
            assert client(76).get(path).json()["results"][1] == found


def test_an_idempotency_key_is_for_one_edit() -> None:
    apply(mine := PostCreatedFactory(author_id=1), other := PostCreatedFactory(author_id=1))
    key = "edit once"
    first = edit(mine.post_id, {"content": "x", "data": None}, key=key).json()
    assert edit(mine.post_id, {"data": None, "content": "x "}, key=key).json() == first
    for body in ({"content": "x"}, {"content": "x", "data": {}}, {"content": "y", "data": None}):
        assert told(edit(mine.post_id, body, key=key)) == (422, "idempotency_key_reused")
    repeated = edit(other.post_id, {"content": "x", "data": None}, key=key)
    assert told(repeated) == (422, "idempotency_key_reused")


def test_following_and_unfollowing() -> None:
    for answer in (client(1).put("/follows/2"), client(1).delete("/follows/2")):
        assert answer.status_code == 202
        assert answer.json()["followee_id"] == "2"
    assert told(client(1).put("/follows/1")) == (422, "cannot_follow_oneself")


def test_muting_and_lifting_it() -> None:
    for answer in (client(1).put("/mutes/2"), client(1).delete("/mutes/2")):
        assert answer.status_code == 202
        body = answer.json()
        assert (set(body), body["muted_id"]) == ({"event_id", "user_id", "muted_id"}, "2")
        assert answer.headers["Location"] == f"/events/{body['event_id']}"
    apply(*[UserMutedFactory(user_id=1, muted_id=other) for other in (2, 3, MAX_ID)])
    assert pages("/mutes?limit=2", 1, key="user_id") == [[str(MAX_ID), "3"], ["2"]]
    assert pages("/mutes", 2, key="user_id") == [[]]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PUT", "/mutes/1", 422, "cannot_mute_oneself"),
        ("DELETE", "/mutes/1", 422, "cannot_mute_oneself"),
        ("PUT", "/mutes/0", 404, "not_found"),
        ("PUT", "/mutes/01", 404, "not_found"),
        ("PUT", "/mutes/9223372036854775808", 404, "not_found"),
        ("PUT", "/mutes/-1", 404, "not_found"),
        ("PUT", "/mutes/x", 404, "not_found"),
        ("DELETE", "/mutes/%00", 404, "not_found"),
        ("PUT", "/mutes/%F0%9F%8C%8D", 404, "not_found"),
        ("PUT", "/mutes", 405, "method_not_allowed"),
        ("POST", "/mutes/2", 405, "method_not_allowed"),
        ("GET", "/mutes/2", 405, "method_not_allowed"),
        ("GET", "/mutes?limit=0", 400, "invalid_limit"),
        ("GET", "/mutes?cursor=x", 400, "invalid_cursor"),
    ],
)
def test_what_is_wrong_about_a_mute_is_refused_with_a_code(
    method: str, path: str, status: int, code: str
) -> None:
    assert told(client(1).request(method, path, {})) == (status, code)


def test_blocking_and_lifting_it() -> None:
    for answer in (client(1).put("/blocks/2"), client(1).delete("/blocks/2")):
        assert answer.status_code == 202
        body = answer.json()
        assert (set(body), body["blocked_id"]) == ({"event_id", "blocker_id", "blocked_id"}, "2")
        assert answer.headers["Location"] == f"/events/{body['event_id']}"
    apply(*[UserBlockedFactory(blocker_id=1, blocked_id=other) for other in (2, 3, MAX_ID)])
    assert pages("/blocks?limit=2", 1, key="user_id") == [[str(MAX_ID), "3"], ["2"]]
    assert pages("/blocks", 2, key="user_id") == [[]]


def test_neither_of_a_blocked_pair_can_follow_the_other() -> None:
    apply(UserBlockedFactory(blocker_id=1, blocked_id=2))
    for user, other in ((1, 2), (2, 1)):
        assert told(client(user).put(f"/follows/{other}")) == (422, "follow_blocked")
        assert client(user).delete(f"/follows/{other}").status_code == 202
        assert client(user).put("/follows/3").status_code == 202
    apply(UserUnblockedFactory(blocker_id=1, blocked_id=2))
    assert client(2).put("/follows/1").status_code == 202


NOTHING: dict[str, object] = {
    "results": [],
    "next": None,
    "previous": None,
    "next_cursor": None,
    "previous_cursor": None,
}


def test_to_one_another_the_two_of_a_blocked_pair_are_not_there(settings: Settings) -> None:
    settings.API_VISIBILITY = "public"
    apply(mine := PostCreatedFactory(author_id=1), gone := PostCreatedFactory(author_id=1))
    apply(PostDeletedFactory(author_id=1, post_id=gone.post_id))
    follow_all([2, 3], followee=1)
    follow_all([1], followee=3)
    apply(UserBlockedFactory(blocker_id=2, blocked_id=1))
    lists = ["/users/1/posts", "/users/1/followers", "/users/1/following"]
    for post_id in (mine.post_id, gone.post_id):
        assert told(client(2).get(f"/posts/{post_id}")) == (404, "post_not_found")
        assert told(client(2).delete(f"/posts/{post_id}")) == (404, "post_not_found")
    for path in lists:
        assert client(2).get(path).json() == NOTHING
        assert client(2).get(path.replace("/1/", "/404/")).json()["results"] == [], "the same"
    assert client(1).get("/users/2/posts").json()["results"] == []

    # Anybody else, oneself, and who may read everybody's feed see all there is.
    for reader in (client(3), client(1), client(2, scope="feeds:read")):
        assert reader.get(f"/posts/{mine.post_id}").status_code == 200
        assert told(reader.get(f"/posts/{gone.post_id}")) == (410, "gone")
        assert [len(reader.get(path).json()["results"]) for path in lists] == [1, 1, 1]
    assert client(2, scope="feeds:read").get("/feeds/1").status_code == 200


def test_a_follow_is_taken_while_nobody_can_ask_for_blocks() -> None:
    apply(UserBlockedFactory(blocker_id=1, blocked_id=2))
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE blocks RENAME TO blocks_away")
    try:
        assert client(2).put("/follows/1").status_code == 202
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE blocks_away RENAME TO blocks")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PUT", "/blocks/1", 422, "cannot_block_oneself"),
        ("DELETE", "/blocks/1", 422, "cannot_block_oneself"),
        ("PUT", "/blocks/0", 404, "not_found"),
        ("PUT", "/blocks/01", 404, "not_found"),
        ("PUT", "/blocks/9223372036854775808", 404, "not_found"),
        ("PUT", "/blocks/-1", 404, "not_found"),
        ("PUT", "/blocks/x", 404, "not_found"),
        ("DELETE", "/blocks/%00", 404, "not_found"),
        ("PUT", "/blocks/%F0%9F%8C%8D", 404, "not_found"),
        ("PUT", "/blocks", 405, "method_not_allowed"),
        ("POST", "/blocks/2", 405, "method_not_allowed"),
        ("GET", "/blocks/2", 405, "method_not_allowed"),
        ("GET", "/blocks?limit=0", 400, "invalid_limit"),
        ("GET", "/blocks?cursor=x", 400, "invalid_cursor"),
    ],
)
def test_what_is_wrong_about_a_block_is_refused_with_a_code(
    method: str, path: str, status: int, code: str
) -> None:
    assert told(client(1).request(method, path, {})) == (status, code)


def pages(url: str, user: int, key: str = "id") -> list[list[str]]:
    found, following = [], url
    while following:
        page = client(user).get(following).json()
        assert set(page) >= {"results", "next", "previous", "next_cursor", "previous_cursor"}
        found.append([row[key] for row in page["results"]])
        following = page["next"]
    return found


def test_lists_are_paged_to_their_end_and_back() -> None:
    posts = [PostCreatedFactory(author_id=1) for _ in range(7)]
    apply(*posts)
    follow_all([2, 3, MAX_ID], followee=1)
    ids = [str(post.post_id) for post in reversed(posts)]
    for url, user in (
        ("/users/1/posts?limit=3", 2),
        ("/feeds/2?limit=3", 2),
        ("/feeds/1?limit=3", 1),
    ):
        assert pages(url, user) == [ids[:3], ids[3:6], ids[6:]]
        second = client(user).get(client(user).get(url).json()["next"]).json()
        back = client(user).get(second["previous"]).json()
        assert ([row["id"] for row in back["results"]], back["previous"]) == (ids[:3], None)
        assert back["next"] is not None
    assert pages("/users/1/followers?limit=2", 1, key="user_id") == [[str(MAX_ID), "3"], ["2"]]
    assert pages("/users/2/following", 2, key="user_id") == [["1"]]
    assert pages("/users/404/posts", 2) == [[]]


def test_pages_stay_put_while_posts_arrive_and_go() -> None:
    posts = [PostCreatedFactory(author_id=1) for _ in range(6)]
    apply(*posts)
    first = client(1).get("/feeds/1?limit=3").json()
    apply(
        PostCreatedFactory(author_id=1), PostDeletedFactory(author_id=1, post_id=posts[2].post_id)
    )
    second = client(1).get(first["next"]).json()
    assert [row["id"] for row in second["results"]] == [
        str(post.post_id) for post in (posts[1], posts[0])
    ]
    assert second["next"] is None


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=",
        "cursor=x",
        "cursor=",
        "cursor=bzE",
        "cursor=%ff",
    ],
)
def test_bad_paging_is_refused_or_harmless(query: str) -> None:
    answer = client(1).get(f"/feeds/1?{query}")
    assert answer.status_code == 200 or told(answer) in (
        (400, "invalid_limit"),
        (400, "invalid_cursor"),
    )
    assert answer.status_code == (200 if query == "cursor=bzE" else 400)


def test_a_feed_is_its_owners_or_needs_the_scope() -> None:
    assert client(1).get("/feeds/1").status_code == 200
    assert told(client(1).get("/feeds/2")) == (403, "not_your_feed")
    assert client(1, scope="feeds:read other").get("/feeds/2").status_code == 200


@pytest.mark.parametrize("path", ["/users/2/following", "/users/2/followers"])
def test_whom_one_follows_and_by_whom_one_is_followed_is_ones_own_business(
    path: str, settings: Settings
) -> None:
    assert client(2).get(path).status_code == 200
    assert told(client(1).get(path)) == (403, "not_your_follows")
    assert client(1, scope="feeds:read").get(path).status_code == 200
    settings.API_VISIBILITY = "public"
    assert client(1).get(path).status_code == 200


def test_what_became_of_an_event_is_its_actors_business(settings: Settings) -> None:
    event_id = compose(clock.host_ms(), 1, 1)
    post = PostCreatedFactory(author_id=2, event_id=event_id)
    path = f"/events/{post.event_id}"
    assert client(1).get(path).json()["state"] == "pending", "as of every id of these days"
    ProcessedEvent.objects.record([post.to_event()], [0.0], uuid4())
    assert client(2).get(path).json()["state"] == "processed"
    assert told(client(1).get(path)) == (403, "not_your_event")
    assert client(1, scope="events:read").get(path).status_code == 200
    settings.API_VISIBILITY = "public"
    assert client(1).get(path).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_and_metrics_are_only_read(path: str) -> None:
    answer = client().post(path)
    assert told(answer) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.headers["Content-Type"] == "application/json"


def test_the_first_page_comes_from_the_cache_at_the_second_read() -> None:
    apply(PostCreatedFactory(author_id=77))
    first, second = client(77).get("/feeds/77"), client(77).get("/feeds/77")
    assert (first.headers["X-Cache"], second.headers["X-Cache"]) == ("miss", "hit")
    assert first.content == second.content
    assert client(77).get("/feeds/77?limit=5").headers["X-Cache"] == "bypass"


def test_without_kafka_a_write_is_503_and_nothing_was_accepted(settings: Settings) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS, settings.KAFKA_PUBLISH_TIMEOUT_MS = "127.0.0.1:1", 300
    producer.close()
    try:
        answer = post({"content": "x"})
        assert told(answer) == (503, "kafka_unavailable")
        assert answer.headers["Retry-After"] == "1"
        wait_until(lambda: client().get("/readyz").status_code == 503)
    finally:
        producer.close()


def test_an_unreachable_database_is_told_from_one_that_answers_with_an_error() -> None:
    answers = {
        error: exception_handler(error, {})
        for error in (InterfaceError("the connection is lost"), ProgrammingError("no such table"))
    }
    unreachable, broken = answers.values()
    assert unreachable is not None
    assert (unreachable.status_code, unreachable.data["code"]) == (503, "database_unavailable")
    assert broken is None


def test_a_command_on_tables_of_another_version_says_so(transactional_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE dead_letters RENAME TO away")
    try:
        command = [sys.executable, "manage.py", "dlq", "list"]
        listed = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO dead_letters")
    assert listed.returncode == 1
    assert listed.stderr.startswith("error: The tables do not fit this version")
    assert "Run `manage.py migrate`." in listed.stderr


# Operations ---------------------------------------------------------------------------------------


def test_probes_and_metrics() -> None:
    assert Current.api.anonymous().get("/healthz").content == b"ok\n"
    everything_ok = b"postgresql: ok\nkafka: ok\nredis: ok\n"
    wait_until(lambda: Current.api.anonymous().get("/readyz").content == everything_ok)
    post({"content": "x"})
    metrics = Current.api.anonymous().get("/metrics").content.decode()
    assert 'events_published_total{result="ok",type="post.created"}' in metrics
    assert "django_http_responses_total_by_status_view_method_total" in metrics


def test_the_openapi_document_is_complete_and_its_page_loads_nothing_from_outside() -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", "/dev/null")
    document = Current.api.anonymous().get("/schema/", Accept="application/json").content.decode()
    for path in (
        "/posts",
        "/posts/{post_id}",
        "/follows/{user_id}",
        "/mutes/{user_id}",
        "/blocks/{user_id}",
        "/feeds/{user_id}",
        "/events/{event_id}",
    ):
        assert path in document
    assert "3.1.0" in document
    assert "https://" not in Current.api.anonymous().get("/docs/").content.decode()


def test_production_settings_pass_the_deployment_check() -> None:
    production = environment() | {
        "DJANGO_HTTPS": "true",
        "DJANGO_SECRET_KEY": "k9" * 12 + "abcdefghijklmnopqrstuvwxyz",
    }
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    checked = subprocess.run(command, env=production, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("FEED_BATCH_MAX_EVENTS", "many", "FEED_BATCH_MAX_EVENTS"),
        ("FEED_STRATEGY", "magic", "FEED_STRATEGY"),
        ("DATABASE_URL", "feed", "DATABASE_URL is no address"),
        ("KAFKA_PARTITIONS", "0", "KAFKA_PARTITIONS"),
        ("JWT_SIGNING_KEY", "short", "JWT_SIGNING_KEY must be at least 32 bytes"),
    ],
)
def test_a_wrong_setting_stops_a_process_with_one_sentence(
    variable: str, value: str, complaint: str
) -> None:
    command = [sys.executable, "manage.py", "check"]
    variables = environment() | {variable: value}
    checked = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert complaint in checked.stderr
    assert len(checked.stderr.strip().splitlines()) == 1, checked.stderr
