"""Many at once: `POST /follows`, and `GET /posts?ids=`."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_redis import get_redis_connection
from pytest_django import Settings

from eventbus import producer
from eventbus.ids.snowflake import MAX_ID
from feeds.events import UserFollowed
from feedsite.authentication import issue_token
from tests.api.hostile import json_suite, naughty_strings
from tests.api.server import ApiClient, ApiServer
from tests.e2e.real_data import DATA
from tests.factories import PostCreatedFactory, PostDeletedFactory, UserBlockedFactory, apply
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

with_data = pytest.mark.skipif(not DATA.exists(), reason="the data is not beside the repository")

_users = count(90_000)


def told(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"code", "detail"}
    return answer.status_code, body["code"]


def follow(client: ApiClient, *followee_ids: object, **headers: str) -> httpx.Response:
    body = json.dumps({"followee_ids": followee_ids}).encode()
    return client.post("/follows", body, **headers)


# Following ----------------------------------------------------------------------------------------


def test_a_hundred_follows_are_accepted_with_an_entry_each_in_their_order(api: ApiServer) -> None:
    wanted = [str(user) for user in range(300, 200, -1)]
    answer = follow(api.client(1), *wanted)
    entries = answer.json()["results"]
    assert (answer.status_code, set(answer.json())) == (202, {"results"})
    assert [entry["followee_id"] for entry in entries] == wanted
    assert all(set(entry) == {"followee_id", "event_id"} for entry in entries)
    assert len({entry["event_id"] for entry in entries}) == 100
    event = api.client(1).get(f"/events/{entries[-1]['event_id']}")
    assert (event.status_code, event.json()["state"]) == (200, "pending")


def test_who_cannot_be_followed_gets_a_code_and_the_others_are_followed(api: ApiServer) -> None:
    entries = follow(api.client(5), "7", "5", str(MAX_ID)).json()["results"]
    assert [entry["followee_id"] for entry in entries] == ["7", "5", str(MAX_ID)]
    assert entries[1].keys() == {"followee_id", "code", "detail"}
    assert entries[1]["code"] == "cannot_follow_oneself"
    assert "event_id" in entries[0]
    assert "event_id" in entries[2]


def test_who_is_blocked_either_way_gets_a_code_and_the_others_are_followed(api: ApiServer) -> None:
    apply(
        UserBlockedFactory(blocker_id=1, blocked_id=2),
        UserBlockedFactory(blocker_id=3, blocked_id=1),
    )
    entries = follow(api.client(1), "2", "3", "4").json()["results"]
    assert [entry.get("code") for entry in entries] == ["follow_blocked", "follow_blocked", None]
    assert "event_id" in entries[2]


def test_of_oneself_alone_nothing_is_published(api: ApiServer) -> None:
    answer = follow(api.client(5), "5", "5")
    assert answer.status_code == 202
    assert [entry["code"] for entry in answer.json()["results"]] == ["cannot_follow_oneself"] * 2


def test_who_is_named_twice_has_one_event_and_two_entries(api: ApiServer) -> None:
    first, other, again = follow(api.client(1), "7", "8", "7").json()["results"]
    assert first == again
    assert first["event_id"] != other["event_id"]


def test_once_workers_have_applied_them_everybody_named_is_followed(api: ApiServer) -> None:
    user = next(_users)
    entries = follow(api.client(user), "7", str(user), "9", "7", "8").json()["results"]
    events = {entry["event_id"]: entry["followee_id"] for entry in entries if "event_id" in entry}
    Worker().process(*[UserFollowed(int(one), user, int(events[one])) for one in events])
    following = api.client(user).get(f"/users/{user}/following").json()["results"]
    assert [entry["user_id"] for entry in following] == ["9", "8", "7"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b'{"followee_ids": [NaN]}', 400, "malformed_json"),
        (b"[" * 100_000, 400, "malformed_json"),
        (b"[]", 422, "not_an_object"),
        (b'["2"]', 422, "not_an_object"),
        (b"{}", 422, "followee_ids_required"),
        (b'{"followee_ids": null}', 422, "followee_ids_required"),
        (b'{"followee_ids": "2"}', 422, "followee_ids_required"),
        (b'{"followee_ids": {"0": "2"}}', 422, "followee_ids_required"),
        (b'{"followee_ids": []}', 422, "followee_ids_empty"),
        (json.dumps({"followee_ids": ["2"] * 101}).encode(), 422, "too_many_followee_ids"),
        (b'{"followee_ids": [2]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": ["2", null]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": [["2"]]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": [true]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": [2.0]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": ["0"]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": ["02"]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": ["+2"]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": [" 2"]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": ["2\\u0000"]}', 422, "invalid_followee_id"),
        ('{"followee_ids": ["٢"]}'.encode(), 422, "invalid_followee_id"),
        (b'{"followee_ids": ["9223372036854775808"]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": ["' + b"9" * 5_000 + b'"]}', 422, "invalid_followee_id"),
        (b'{"followee_ids": ["' + b"x" * 200_000 + b'"]}', 413, "payload_too_large"),
    ],
)
def test_a_bad_body_is_refused_whole_with_a_code(
    api: ApiServer, body: bytes, status: int, code: str
) -> None:
    assert told(api.client().post("/follows", body)) == (status, code)


def test_the_faulty_one_of_a_list_is_named(api: ApiServer) -> None:
    assert "followee_ids[2]" in follow(api.client(), "2", "3", "x").json()["detail"]


def test_other_media_types_and_methods_are_refused(api: ApiServer) -> None:
    refused = api.client().post("/follows", b"followee_ids=2", "application/x-www-form-urlencoded")
    assert told(refused) == (415, "unsupported_media_type")
    assert told(api.client().get("/follows")) == (405, "method_not_allowed")
    assert api.anonymous().post("/follows", b"{}").status_code == 401


@with_data
def test_the_json_test_suite_and_naughty_strings_follow_nobody(api: ApiServer) -> None:
    client = api.client()
    for name, body in json_suite():
        answer = client.post("/follows", body)
        assert answer.status_code in (400, 413, 422), name
        malformed = told(answer)[1] in ("malformed_json", "payload_too_large")
        assert malformed == name.startswith("n_") or name.startswith("i_"), name
    for text in naughty_strings()[::5]:
        if text not in ("1", "2"):
            assert told(follow(client, "2", text)) == (422, "invalid_followee_id"), text


def test_a_repeated_bulk_has_the_same_events_and_another_under_its_key_is_refused(
    api: ApiServer,
) -> None:
    client = api.client(next(_users))
    first, again = (follow(client, "3", "4", "3", Idempotency_Key="k") for _ in range(2))
    assert first.json() == again.json()
    assert told(follow(client, "4", "3", Idempotency_Key="k")) == (422, "idempotency_key_reused")
    assert told(follow(client, "4", Idempotency_Key="x" * 256)) == (400, "invalid_idempotency_key")


def test_without_kafka_nothing_is_promised_for_any_and_a_repeat_is_the_same(
    api: ApiServer, settings: Settings
) -> None:
    client = api.client(next(_users))
    servers = settings.KAFKA_BOOTSTRAP_SERVERS
    settings.KAFKA_BOOTSTRAP_SERVERS, settings.KAFKA_PUBLISH_TIMEOUT_MS = "127.0.0.1:1", 300
    producer.close()
    try:
        refused = follow(client, "3", "4", Idempotency_Key="k")
        assert told(refused) == (503, "kafka_unavailable")
        assert refused.headers["Retry-After"] == "1"
    finally:
        producer.close()
        settings.KAFKA_BOOTSTRAP_SERVERS = servers
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 5_000
    first, again = (follow(client, "3", "4", Idempotency_Key="k") for _ in range(2))
    assert first.status_code == 202
    assert first.json() == again.json()


# Its rate -----------------------------------------------------------------------------------------

LIMIT = 5


@pytest.fixture
def limited(settings: Settings) -> Iterator[None]:
    settings.API_POST_RATE = f"{LIMIT}/min"
    yield
    for key in get_redis_connection("default").scan_iter("rate:*"):
        get_redis_connection("default").delete(key)


def left(answer: httpx.Response) -> str:
    return answer.headers["RateLimit"].split(";")[1]


@pytest.mark.usefixtures("limited")
def test_a_bulk_counts_its_size_and_one_that_does_not_fit_takes_nothing(api: ApiServer) -> None:
    client = api.client(next(_users))
    assert left(follow(client, "2", "3", "2")) == "r=2"
    refused = follow(client, "4", "5", "6")
    assert told(refused) == (429, "throttled")
    assert left(refused) == "r=2"
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert left(client.put("/follows/4")) == "r=1"
    assert left(follow(client, "5")) == "r=0"
    assert told(client.post("/posts", b'{"content": "x"}')) == (429, "throttled")


@pytest.mark.usefixtures("limited")
def test_bulks_at_the_same_time_do_not_pass_the_limit_together(api: ApiServer) -> None:
    client = api.client(next(_users))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _n: follow(client, "2", "3"), range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] * 2 + [429] * 6
    assert follow(client, "2").status_code == 202


@pytest.mark.usefixtures("limited")
def test_a_bulk_that_the_limit_can_never_take_is_told_so(api: ApiServer) -> None:
    client = api.client(next(_users))
    assert told(follow(client, *"234567")) == (422, "exceeds_write_rate")
    assert follow(client, *"23456").status_code == 202


# Reading ------------------------------------------------------------------------------------------


def read(api: ApiServer, *ids: object, user: int = 1) -> list[dict[str, Any]]:
    answer = api.client(user).get(f"/posts?ids={','.join(map(str, ids))}")
    assert (answer.status_code, set(answer.json())) == (200, {"results"})
    entries: list[dict[str, Any]] = answer.json()["results"]
    return entries


def test_posts_are_read_in_the_order_asked_for_with_an_entry_each(api: ApiServer) -> None:
    posts = [PostCreatedFactory(author_id=author) for author in (1, 2, 3)]
    gone = PostCreatedFactory(author_id=1)
    apply(*posts, gone)
    apply(PostDeletedFactory(post_id=gone.post_id, author_id=1))
    first, second, third = (post.post_id for post in posts)
    entries = read(api, second, gone.post_id, first, MAX_ID, third, second)
    assert entries[1] == {"id": str(gone.post_id), "state": "deleted"}
    assert entries[3] == {"id": str(MAX_ID), "state": "unknown"}
    shown = [entries[place] for place in (0, 2, 4, 5)]
    alone = [api.client().get(f"/posts/{post}").json() for post in (second, first, third, second)]
    assert shown == alone


def test_posts_between_a_blocked_pair_are_as_ones_that_there_are_not(api: ApiServer) -> None:
    apply(mine := PostCreatedFactory(author_id=1), other := PostCreatedFactory(author_id=2))
    apply(UserBlockedFactory(blocker_id=2, blocked_id=1))
    path = f"/posts?ids={mine.post_id},{other.post_id},77"
    states = {
        user: [entry.get("state") for entry in api.client(user).get(path).json()["results"]]
        for user in (1, 2, 3)
    }
    assert states == {
        1: [None, "unknown", "unknown"],
        2: ["unknown", None, "unknown"],
        3: [None, None, "unknown"],
    }


def test_the_parameter_may_be_repeated_instead(api: ApiServer) -> None:
    answer = api.client().get("/posts?ids=5,6&ids=7")
    assert [entry["id"] for entry in answer.json()["results"]] == ["5", "6", "7"]


def test_a_hundred_posts_are_one_query() -> None:
    posts = [PostCreatedFactory() for _ in range(100)]
    apply(*posts)
    client = Client(headers={"Authorization": f"Bearer {issue_token(1, '', 60)}"})
    ids = ",".join(str(post.post_id) for post in posts)
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(f"/posts?ids={ids}")
    assert [entry["content"] for entry in answer.json()["results"]] == [p.content for p in posts]
    assert len(captured) == 1


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "ids_required"),
        ("?ids=", "ids_required"),
        ("?id=1", "ids_required"),
        ("?ids=,", "invalid_ids"),
        ("?ids=1,", "invalid_ids"),
        ("?ids=1,,2", "invalid_ids"),
        ("?ids=0", "invalid_ids"),
        ("?ids=01", "invalid_ids"),
        ("?ids=-1", "invalid_ids"),
        ("?ids=1.0", "invalid_ids"),
        ("?ids=1%202", "invalid_ids"),
        ("?ids=%D9%A2", "invalid_ids"),
        ("?ids=1%00", "invalid_ids"),
        ("?ids=%ff", "invalid_ids"),
        ("?ids=9223372036854775808", "invalid_ids"),
        ("?ids=" + "9" * 5_000, "invalid_ids"),
        ("?ids=" + ",".join(["1"] * 101), "too_many_ids"),
    ],
)
def test_bad_ids_are_refused_with_a_code(api: ApiServer, query: str, code: str) -> None:
    assert told(api.client().get(f"/posts{query}")) == (400, code)
    assert api.anonymous().get(f"/posts{query}").status_code == 401


def test_a_hundred_ids_are_fine_and_no_writes(api: ApiServer, settings: Settings) -> None:
    settings.API_POST_RATE = "1/min"
    assert {entry["state"] for entry in read(api, *[MAX_ID] * 100)} == {"unknown"}
    assert len(read(api, *range(1, 101))) == 100


@pytest.fixture
def lookups_limited(settings: Settings, limited: None) -> None:
    settings.API_LOOKUP_RATE = "100/min"


@pytest.mark.usefixtures("lookups_limited")
def test_posts_read_by_id_count_each_and_a_request_that_does_not_fit_takes_nothing(
    api: ApiServer,
) -> None:
    client = api.client(next(_users))
    apply(post := PostCreatedFactory())
    some = ",".join(map(str, range(1, 41)))
    first = client.get(f"/posts?ids={some}")
    assert first.headers["RateLimit-Policy"] == '"lookups";q=100;w=60'
    assert left(first) == "r=60"
    assert left(client.get(f"/posts/{post.post_id}")) == "r=59"
    assert left(client.get(f"/posts?ids={some}")) == "r=19"
    refused = client.get(f"/posts?ids={some}")
    assert told(refused) == (429, "throttled")
    assert left(refused) == "r=19"
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert left(client.get("/posts?ids=" + ",".join("1" * 19))) == "r=0"
    assert told(client.get(f"/posts/{post.post_id}")) == (429, "throttled")
    assert api.client(next(_users)).get(f"/posts/{post.post_id}").status_code == 200


@pytest.mark.usefixtures("lookups_limited")
def test_lookups_and_writes_are_counted_apart_and_bad_ids_not_at_all(api: ApiServer) -> None:
    user = next(_users)
    client = api.client(user)
    assert told(client.get("/posts?ids=x")) == (400, "invalid_ids")
    assert left(follow(client, *"23456")) == "r=0"
    assert left(client.get("/posts?ids=" + ",".join("1" * 100))) == "r=0"
    assert client.get(f"/feeds/{user}").status_code == 200
    assert client.get(f"/users/{user}/posts").status_code == 200


@with_data
def test_naughty_strings_are_no_ids(api: ApiServer) -> None:
    for text in naughty_strings()[::5]:
        answer = api.client().get(f"/posts?ids=x,{quote(text)}")
        assert told(answer) == (400, "invalid_ids"), text
