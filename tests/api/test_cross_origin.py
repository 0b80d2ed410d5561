"""CORS: pages of the sites in `CORS_ALLOWED_ORIGINS` may use the API from a browser, others may
not; the same with the front on and off.
"""

from collections.abc import Iterator

import httpx
import pytest
from django.test import override_settings
from pytest_django import Settings

from feedsite.authentication import issue_token
from tests.api.server import ApiServer
from tests.factories import PostCreatedFactory, apply

pytestmark = pytest.mark.django_db(transaction=True)

OURS, PARTNER, OTHER = "https://app.example", "http://localhost:5173", "https://other.example"
EXPOSED = (
    "Location, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Cache, X-Request-ID"
)


@pytest.fixture(scope="module", autouse=True)
def _two_origins_are_allowed() -> Iterator[None]:
    with override_settings(CORS_ALLOWED_ORIGINS=[OURS, PARTNER]):
        yield


def ask(
    api: ApiServer, method: str, path: str, origin: str = "", body: bytes = b"", **more: str
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {issue_token(1, '', 60)}"} | more
    if origin:
        headers["Origin"] = origin
    if body:
        headers["Content-Type"] = "application/json"
    with httpx.Client(base_url=api.url, timeout=30) as client:
        return client.request(method, path, headers=headers, content=body)


def preflight(
    api: ApiServer, path: str, origin: str, method: str, asked_headers: str = ""
) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": asked_headers,
    }
    with httpx.Client(base_url=api.url, timeout=30) as client:
        return client.options(path, headers=headers)


def told_of_origins(answer: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in answer.headers.items()
        if name.startswith("access-control-") or name == "vary"
    }


@pytest.mark.parametrize("origin", [OURS, PARTNER])
def test_a_page_of_an_allowed_origin_reads_answers_and_their_headers(
    api: ApiServer, origin: str
) -> None:
    for path, body in (("/posts", b'{"content": "x"}'), ("/posts", b"{}")):
        answer = ask(api, "POST", path, origin, body)
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Expose-Headers"] == EXPOSED
        assert answer.headers["Vary"] == "origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origin", [OTHER, "null", "https://app.example.evil.example", ""])
def test_a_page_of_another_origin_is_told_nothing(api: ApiServer, origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        answer = ask(api, method, "/feeds/1", origin)
        assert told_of_origins(answer) == {"vary": "origin"}
    assert told_of_origins(preflight(api, "/posts", OTHER, "POST")) == {"vary": "origin"}


def test_a_cached_page_tells_each_origin_its_own(api: ApiServer) -> None:
    apply(PostCreatedFactory(author_id=1))
    ask(api, "GET", "/feeds/1", OURS)
    for origin in (OURS, PARTNER, OTHER, "", OURS):
        answer = ask(api, "GET", "/feeds/1", origin)
        allowed = origin if origin in (OURS, PARTNER) else None
        assert answer.headers["X-Cache"] == "hit"
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        assert answer.headers["Vary"] == "origin"


@pytest.mark.parametrize(("method", "path"), [("POST", "/posts"), ("DELETE", "/follows/2")])
def test_a_preflight_lets_the_methods_and_headers_of_the_api_through(
    api: ApiServer, method: str, path: str
) -> None:
    answer = preflight(api, path, OURS, method, "authorization, idempotency-key, content-type")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == OURS
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
    assert {"authorization", "idempotency-key", "content-type", "last-event-id"} <= set(allowed)
    assert answer.headers["Access-Control-Max-Age"] == "86400"
    assert answer.headers["X-Request-ID"]


def test_what_the_front_refuses_itself_can_be_read_too(api: ApiServer, settings: Settings) -> None:
    too_large = ask(api, "POST", "/posts", OURS, b"x" * 200_000)
    assert too_large.status_code == 413
    assert too_large.headers["Access-Control-Allow-Origin"] == OURS
    settings.LIVE_MAX_STREAMS = 0
    no_stream = ask(api, "GET", "/feeds/1/live", OURS)
    assert no_stream.json()["code"] in ("too_many_streams", "live_unavailable")
    assert no_stream.headers["Access-Control-Allow-Origin"] == OURS


def test_a_live_feed_can_be_read(servers: dict[str, ApiServer]) -> None:
    headers = {"Authorization": f"Bearer {issue_token(1, '', 60)}", "Origin": OURS}
    url = f"{servers['front on'].url}/feeds/1/live"
    with httpx.stream("GET", url, headers=headers, timeout=30) as stream:
        assert stream.headers["Access-Control-Allow-Origin"] == OURS
        assert stream.headers["Vary"] == "origin"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs/", "/admin/login/"])
def test_what_is_for_people_and_operators_stays_closed(api: ApiServer, path: str) -> None:
    answers = [ask(api, "GET", path, OURS), preflight(api, path, OURS, "GET")]
    told = [name for answer in answers for name in told_of_origins(answer)]
    assert [name for name in told if name != "vary"] == []


@pytest.mark.parametrize(
    "origin", [OURS, OTHER, "HTTPS://app.example", "https://app.example/x", ""]
)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/feeds/1", b""),
        ("GET", "/feeds/1/new?since=0", b""),
        ("GET", "/feeds/2", b""),
        ("HEAD", "/feeds/1", b""),
        ("OPTIONS", "/feeds/1", b""),
        ("GET", "/nothing", b""),
        ("POST", "/posts", b'{"content": "x"}'),
        ("POST", "/posts", b"{"),
        ("PUT", "/follows/2", b""),
        ("GET", "/schema/", b""),
        ("GET", "/healthz", b""),
    ],
)
def test_the_front_tells_what_django_tells(
    servers: dict[str, ApiServer], method: str, path: str, body: bytes, origin: str
) -> None:
    with_front, without = (ask(server, method, path, origin, body) for server in servers.values())
    assert with_front.status_code == without.status_code
    assert told_of_origins(with_front) == told_of_origins(without)


@pytest.mark.parametrize("origin", [OURS, OTHER])
@pytest.mark.parametrize("path", ["/posts", "/follows/2", "/schema/", "/healthz", "/nothing"])
def test_the_front_answers_preflights_as_django_does(
    servers: dict[str, ApiServer], path: str, origin: str
) -> None:
    with_front, without = (
        preflight(server, path, origin, "POST", "authorization") for server in servers.values()
    )
    changing = {"date", "x-request-id"}
    headers = [
        {name: value for name, value in answer.headers.items() if name not in changing}
        for answer in (with_front, without)
    ]
    assert (with_front.status_code, headers[0]) == (without.status_code, headers[1])
