"""HTTP by the book, on raw sockets: framing, limits, half requests, the same answers with the front
on and off.
"""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pytest
from pytest_django import Settings

from feedsite.authentication import issue_token
from tests.api.server import HEADER_SECONDS, ApiServer
from tests.factories import PostCreatedFactory, apply

pytestmark = pytest.mark.django_db(transaction=True)

PATIENCE = 60.0  # seconds
LIMIT = 128 * 1024


class Told(NamedTuple):
    """An answer as it came over the wire, and whether the connection was closed after it, as it
    announced.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def code(self) -> str:
        code: str = json.loads(self.body)["code"]
        return code


@contextmanager
def connected(api: ApiServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE) as connection:
        yield connection


def read_answer(connection: socket.socket, *, head: bool = False) -> Told:
    """Read one answer, by its Content-Length, which every answer has."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        if not piece:
            return Told(0, {}, data, True)
        data += piece
    top, body = data.split(b"\r\n\r\n", 1)
    status_line, *lines = top.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), f"a header twice: {pairs}"
    assert "transfer-encoding" not in headers
    wanted = 0 if head else int(headers["content-length"])
    while len(body) < wanted:
        piece = connection.recv(65_536)
        assert piece, "the answer broke off"
        body += piece
    closed = headers.get("connection") == "close" and is_closed(connection)
    return Told(int(status_line.split(" ")[1]), headers, body, closed)


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the server closes the connection, which it does at once or not at all."""
    connection.settimeout(5.0)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    finally:
        connection.settimeout(PATIENCE)


def bearer(user: int = 1) -> str:
    return f"Authorization: Bearer {issue_token(user, '', 60)}\r\n"


def head(method: str, path: str, *lines: str, host: str = "Host: localhost") -> bytes:
    hosts = [host] if host else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", *hosts, *lines, "", ""]).encode()


def post_head(*lines: str, content_type: str = "application/json") -> bytes:
    return head("POST", "/posts", bearer().strip(), f"Content-Type: {content_type}", *lines)


def ask(
    api: ApiServer, request: bytes, *, then: bytes = b"", end: bool = False, is_head: bool = False
) -> Told:
    """Send a request, perhaps more after it, perhaps the end of all that is sent; return the
    answer.
    """
    with connected(api) as connection:
        connection.sendall(request)
        if then:
            sender = threading.Thread(
                target=send_as_far_as_taken, args=(connection, then), daemon=True
            )
            sender.start()
        if end:
            connection.shutdown(socket.SHUT_WR)
        return read_answer(connection, head=is_head)


def send_as_far_as_taken(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # the server has closed
        connection.sendall(data)


BODY = b'{"content": "hello"}'
CHUNKED = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"


def test_a_body_may_come_in_chunks(api: ApiServer) -> None:
    told = ask(api, post_head("Transfer-Encoding: chunked") + CHUNKED)
    assert (told.status, json.loads(told.body)["content"], told.closed) == (202, "hello", False)


@pytest.mark.parametrize(
    ("request_lines", "sent", "status", "code"),
    [
        (("Content-Length: 500",), BODY, 400, "incomplete_body"),
        (
            ("Transfer-Encoding: chunked",),
            CHUNKED.removesuffix(b"0\r\n\r\n"),
            400,
            "incomplete_body",
        ),
        (("Transfer-Encoding: chunked",), b"5\r\nhel", 400, "incomplete_body"),
        (("Transfer-Encoding: chunked",), b"zz\r\nhello", 400, "incomplete_body"),
    ],
)
def test_a_body_that_ends_early_is_refused(
    api: ApiServer, request_lines: tuple[str, ...], sent: bytes, status: int, code: str
) -> None:
    told = ask(api, post_head(*request_lines) + sent, end=True)
    assert (told.status, told.code, told.closed) == (status, code, True)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ((f"Content-Length: {6_000_000}",), b"x" * 6_000_000),
        ((f"Content-Length: {LIMIT + 1}",), b"x" * (LIMIT + 1)),
        (
            ("Transfer-Encoding: chunked",),
            b"%x\r\n%b\r\n" % (3_000_000, b"x" * 3_000_000) + b"0\r\n\r\n",
        ),
    ],
    ids=["6 MB", "one byte more", "in chunks"],
)
def test_an_oversized_body_gets_its_answer_while_it_is_still_sent(
    api: ApiServer, lines: tuple[str, ...], body: bytes
) -> None:
    told = ask(api, post_head(*lines), then=body)
    assert (told.status, told.code) == (413, "payload_too_large")
    assert told.headers["connection"] == "close"
    assert told.closed


def test_the_body_of_a_get_is_read_like_any_other(api: ApiServer) -> None:
    for path in ("/feeds/1", "/users/1/posts"):
        request = head("GET", path, bearer().strip(), f"Content-Length: {LIMIT + 1}")
        for _ in range(2):  # the second would come from the cache
            assert ask(api, head("GET", path, bearer().strip())).status == 200
        told = ask(api, request, then=b"x" * (LIMIT + 1))
        assert (told.status, told.closed) == (413, True)


def test_a_body_of_just_the_limit_is_read(api: ApiServer) -> None:
    body = BODY.ljust(LIMIT)
    assert ask(api, post_head(f"Content-Length: {len(body)}"), then=body).status == 202


def test_a_body_that_does_not_come_to_its_end_gets_408(api: ApiServer, settings: Settings) -> None:
    settings.HTTP_BODY_SECONDS = 1
    for lines in (("Content-Length: 500",), ("Transfer-Encoding: chunked",)):
        told = ask(api, post_head(*lines) + b"5\r\n")
        assert (told.status, told.code, told.closed) == (408, "request_timeout", True)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: loc"], ids=["nothing", "half a head"]
)
def test_who_sends_no_request_is_cut_off(api: ApiServer, sent: bytes) -> None:
    with connected(api) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(sent)
        assert connection.recv(100) == b""


def test_a_kept_connection_on_which_nothing_comes_is_closed(api: ApiServer) -> None:
    with connected(api) as connection:
        connection.sendall(head("GET", "/healthz"))
        assert read_answer(connection).status == 200
        connection.settimeout(HEADER_SECONDS * 5)
        assert connection.recv(100) == b""


@pytest.mark.parametrize("encoding", ["gzip", "br", "x-unheard-of"])
def test_an_encoded_body_is_not_read(api: ApiServer, encoding: str) -> None:
    told = ask(
        api, post_head(f"Content-Encoding: {encoding}", f"Content-Length: {len(BODY)}") + BODY
    )
    assert (told.status, told.code) == (415, "unsupported_encoding")


def test_the_encoding_identity_is_none(api: ApiServer) -> None:
    assert (
        ask(
            api, post_head("Content-Encoding: identity", f"Content-Length: {len(BODY)}") + BODY
        ).status
        == 202
    )


@pytest.mark.parametrize(
    "host", ["", "Host: localhost\r\nHost: localhost", "Host: nowhere.example", "Host: a b"]
)
def test_a_missing_doubled_or_foreign_host_is_refused(api: ApiServer, host: str) -> None:
    apply(PostCreatedFactory(author_id=1))
    for path in ("/feeds/1", "/feeds/1", "/users/1/posts"):
        assert ask(api, head("GET", path, bearer().strip(), host=host)).status == 400


def test_a_body_of_two_types_is_of_none(api: ApiServer) -> None:
    lines = ("Content-Type: text/plain", f"Content-Length: {len(BODY)}")
    told = ask(api, post_head(*lines) + BODY)
    assert (told.status, told.code) == (415, "unsupported_media_type")


def test_a_key_that_is_not_ascii_is_refused_and_not_passed_over(api: ApiServer) -> None:
    post = post_head(f"Content-Length: {len(BODY)}", "Idempotency-Key: é") + BODY
    mute = head("PUT", "/mutes/5", bearer().strip(), "Idempotency-Key: é")
    for write in (post, mute):
        told = ask(api, write)
        assert (told.status, told.code) == (400, "invalid_idempotency_key")


def test_a_header_with_underscores_is_none(api: ApiServer) -> None:
    told = ask(api, head("GET", "/users/1/posts", bearer().strip(), "X_Request_ID: mine"))
    assert told.headers["x-request-id"] != "mine"


def test_pages_of_other_sites_are_told_nothing_unless_a_setting_names_them(api: ApiServer) -> None:
    lines = (bearer().strip(), "Origin: https://app.example", "Access-Control-Request-Method: POST")
    for method, path in (("GET", "/feeds/1"), ("OPTIONS", "/posts")):
        told = ask(api, head(method, path, *lines))
        assert told.status == 200
        assert [name for name in told.headers if name.startswith(("access-control", "vary"))] == []


def test_requests_may_follow_each_other_without_waiting(api: ApiServer) -> None:
    one = post_head(f"Content-Length: {len(BODY)}") + BODY
    with connected(api) as connection:
        connection.sendall(one + one)
        assert [read_answer(connection).status for _ in range(2)] == [202, 202]


PATHS = [
    "/feeds/1",
    "/feeds/1?limit=5",
    "/feeds/1/new?since=0",
    "/posts/5",
    "/posts?ids=5",
    "/users/1/posts",
    "/healthz",
    "/schema/",
]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_its_body(api: ApiServer, path: str) -> None:
    apply(PostCreatedFactory(author_id=1))
    for _ in range(2):  # the second comes from the cache
        shown = ask(api, head("GET", path, bearer().strip()))
        told = ask(api, head("HEAD", path, bearer().strip()), is_head=True)
        changing = {"date", "x-request-id", "x-cache"}
        assert {n: v for n, v in told.headers.items() if n not in changing} == {
            n: v for n, v in shown.headers.items() if n not in changing
        }
        assert (told.status, told.body) == (shown.status, b"")


REQUESTS = [
    ("GET", "/feeds/1", b"", 200),
    ("GET", "/feeds/2", b"", 403),
    ("GET", "/feeds/1?limit=x", b"", 400),
    ("GET", "/feeds/01", b"", 404),
    ("GET", "/feeds/9223372036854775808", b"", 404),
    ("GET", "/feeds/1/new?since=0", b"", 200),
    ("GET", "/feeds/1/new?since=x", b"", 400),
    ("GET", "/feeds/1/new", b"", 409),
    ("PUT", "/feeds/1", b"", 405),
    ("PUT", "/feeds/1/seen", b"", 400),
    ("PUT", "/feeds/1/seen", b'{"post_id": 5}', 422),
    ("PUT", "/feeds/1/seen", b'{"post_id": "5"}', 202),
    ("PUT", "/feeds/2/seen", b'{"post_id": "5"}', 403),
    ("GET", "/feeds/1/seen", b"", 405),
    ("POST", "/feeds/1/new?since=0", b"", 405),
    ("GET", "/posts", b"", 400),
    ("GET", "/posts?ids=5,5", b"", 200),
    ("GET", "/posts?ids=0", b"", 400),
    ("PUT", "/posts", b"", 405),
    ("POST", "/follows", b"", 400),
    ("POST", "/follows", b'{"followee_ids": []}', 422),
    ("POST", "/follows", b'{"followee_ids": ["2", "1"]}', 202),
    ("GET", "/follows", b"", 405),
    ("POST", "/posts", b"", 400),
    ("POST", "/posts", b"{", 400),
    ("POST", "/posts", b"[]", 422),
    ("POST", "/posts", BODY, 202),
    ("POST", "/posts", b'{"data": {"a": [1, null]}}', 202),
    ("POST", "/posts", b'{"data": {"a": 1, "a": 1}}', 422),
    ("PATCH", "/posts/5", BODY, 404),
    ("OPTIONS", "/posts", b"", 200),
    ("GET", "/nope", b"", 404),
    ("GET", "/healthz", b"", 200),
]
SAME_IN_ALL = {
    "content-type",
    "allow",
    "x-frame-options",
    "x-content-type-options",
    "referrer-policy",
    "vary",
} | {
    "cross-origin-opener-policy",
    "www-authenticate",
    "retry-after",
}


@pytest.mark.parametrize(("method", "path", "body", "status"), REQUESTS)
def test_the_front_answers_as_django_does(
    servers: dict[str, ApiServer], method: str, path: str, body: bytes, status: int
) -> None:
    apply(PostCreatedFactory(author_id=1))
    request = head(
        method,
        path,
        bearer().strip(),
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    for _ in range(2):  # the second comes from the cache
        on, off = (ask(server, request + body) for server in servers.values())
        assert on.status == off.status == status
        assert {n for n in on.headers if n != "x-cache"} == {
            n for n in off.headers if n != "x-cache"
        }
        assert {n: on.headers.get(n) for n in SAME_IN_ALL} == {
            n: off.headers.get(n) for n in SAME_IN_ALL
        }
        if status != 202:
            assert on.body.replace(b"%d" % servers["front on"].port, b"") == off.body


def test_without_a_token_the_front_answers_as_django_does(servers: dict[str, ApiServer]) -> None:
    ask(servers["front on"], head("GET", "/feeds/1", bearer().strip()))  # it is cached
    for line in (
        f"{bearer()}Authorization: Bearer nonsense",  # which of the two others take, nobody knows
        "Authorization: Bearer é",
        "X: y",
        "Authorization: Bearer nonsense",
        "Authorization: Basic x",
        "Authorization: Bearer ",
    ):
        on, off = (ask(server, head("GET", "/feeds/1", line)) for server in servers.values())
        assert (on.status, on.body, on.headers["www-authenticate"]) == (
            401,
            off.body,
            off.headers["www-authenticate"],
        )


def test_half_requests_hold_nobody_up(api: ApiServer, settings: Settings) -> None:
    """Of a head, of a body, with and without a token; everybody else is answered meanwhile."""
    settings.HTTP_BODY_SECONDS = 3
    halves = [
        b"",
        b"POST /posts HT",
        head("POST", "/posts", "Content-Length: 500") + b"{",
        post_head("Content-Length: 500") + b"{",
        post_head("Transfer-Encoding: chunked") + b"5\r\n{",
    ]
    waiting = [socket.create_connection(("127.0.0.1", api.port)) for _ in range(250)]
    try:
        for number, connection in enumerate(waiting):
            connection.sendall(halves[number % len(halves)])
        client = api.client()
        for _ in range(20):
            assert client.get("/healthz").status_code == 200
            assert client.get("/users/1/posts").status_code == 200
            assert client.post("/posts", BODY).status_code == 202
        for connection in waiting:  # and each of them is told, or cut off
            connection.settimeout(PATIENCE)
            told = read_answer(connection)
            assert told.status in (0, 408)
    finally:
        for connection in waiting:
            connection.close()


def test_logins_at_once_hold_nobody_up(api: ApiServer) -> None:
    """Each costs a processor a good part of a second, with each Django more; there are threads for a
    few, and the rest wait for these, on a slow machine for too long.
    """
    page = api.anonymous().get("/admin/login/")
    token = page.cookies["csrftoken"]
    form = f"csrfmiddlewaretoken={token}&username=nobody&password=guess".encode()

    def guess(_number: int) -> int:
        form_type = "application/x-www-form-urlencoded"
        return (
            api.anonymous(Cookie=f"csrftoken={token}")
            .post("/admin/login/", form, form_type)
            .status_code
        )

    with ThreadPoolExecutor(24) as threads:
        guesses = [threads.submit(guess, number) for number in range(24)]
        while not all(each.done() for each in guesses):
            assert api.client().get("/healthz").status_code == 200
            assert api.client().get("/users/1/posts").status_code == 200
    assert {each.result() for each in guesses} <= {200, 429, 503}
