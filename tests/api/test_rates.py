"""The limit of writes: under concurrency, for writes of every kind, and what its answers tell."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest
from django_redis import get_redis_connection
from pytest_django import Settings

from eventbus import breaker, cells
from tests.api.server import ApiClient, ApiServer
from tests.factories import PostCreatedFactory, apply

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = 5
BODY = json.dumps({"content": "x"}).encode()

_users = count(70_000)


@pytest.fixture(autouse=True)
def limited(settings: Settings) -> Iterator[None]:
    settings.API_POST_RATE = f"{LIMIT}/min"
    yield
    for key in get_redis_connection("default").scan_iter("rate:*"):
        get_redis_connection("default").delete(key)


@pytest.fixture
def writer(api: ApiServer) -> ApiClient:
    return api.client(next(_users))


def test_writes_at_the_same_time_do_not_pass_the_limit_together(writer: ApiClient) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _n: writer.post("/posts", BODY), range(16)))
    assert sorted(answer.status_code for answer in answers) == [202] * LIMIT + [429] * (16 - LIMIT)


def test_writes_of_every_kind_count(api: ApiServer) -> None:
    user = next(_users)
    writer = api.client(user)
    apply(mine := PostCreatedFactory(author_id=user))
    writes = [
        writer.post("/posts", BODY),
        writer.put("/blocks/5"),
        writer.delete("/mutes/5"),
        writer.delete(f"/posts/{mine.post_id}"),
        writer.post("/posts", BODY, Idempotency_Key="k"),
    ]
    assert [answer.status_code for answer in writes] == [202] * LIMIT
    assert writer.put("/follows/5").status_code == 429
    assert writer.get(f"/feeds/{user}").status_code == 200, "reads do not count"


def test_who_is_refused_is_told_when_to_come_back(writer: ApiClient) -> None:
    accepted = [writer.post("/posts", BODY) for _ in range(LIMIT)]
    for refused in (writer.post("/posts", BODY), writer.put("/follows/5")):
        assert (refused.status_code, refused.json()["code"]) == (429, "throttled")
        assert 1 <= int(refused.headers["Retry-After"]) <= 61
        assert remaining(refused) == 0
    assert [remaining(answer) for answer in accepted] == [4, 3, 2, 1, 0]


def remaining(answer: httpx.Response) -> int:
    """Return what the RateLimit field says is left."""
    assert answer.headers["RateLimit-Policy"] == f'"writes";q={LIMIT};w=60'
    name, left, seconds = answer.headers["RateLimit"].split(";")
    assert name == '"writes"'
    assert 0 <= int(seconds.removeprefix("t=")) <= 60
    return int(left.removeprefix("r="))


def test_users_do_not_use_up_each_others_limit(api: ApiServer) -> None:
    for _ in range(2 * LIMIT):
        assert api.client(next(_users)).post("/posts", BODY).status_code == 202


def test_a_refused_body_costs_nothing_on_the_front(servers: dict[str, ApiServer]) -> None:
    """Django counts a request before it reads the body; the front counts what it has understood, or
    leaves it whole.
    """
    writer = servers["front on"].client(next(_users))
    assert [writer.post("/posts", b"{").status_code for _ in range(2)] == [400, 400]
    assert remaining(writer.post("/posts", BODY)) == LIMIT - 3


def test_without_redis_writes_go_through_uncounted(writer: ApiClient) -> None:
    redis = breaker.of(cells.own()).redis
    redis.failed("away")  # to somebody else, who tries again
    answers = [writer.put("/follows/5") for _ in range(2 * LIMIT)]
    redis.succeeded()
    assert {answer.status_code for answer in answers} == {202}
    assert not any("RateLimit" in answer.headers for answer in answers)
