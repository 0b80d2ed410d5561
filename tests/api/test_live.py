"""`GET /feeds/{user}/live`: server-sent events of what changes in a feed."""

import json
import socket

import pytest
from pytest_django import Settings

from feedsite.authentication import issue_token
from tests.api.server import ApiServer
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserUnfollowedFactory,
    follow_all,
)
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

READER, AUTHOR, STAR = 2, 1, 3


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """The reader follows an author whose posts are pushed and a star, whose posts are pulled."""
    settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = "hybrid", 3
    follow_all([READER], followee=AUTHOR)
    follow_all([READER, 10, 11], followee=STAR)
    return Worker()


class Live:
    """An open stream, read line by line from its socket."""

    def __init__(
        self, server: ApiServer, query: str = "", headers: str = "", ttl: int = 60
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        head = (
            f"GET /feeds/{READER}/live{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {issue_token(READER, '', ttl)}\r\n{headers}\r\n"
        )
        self._socket.sendall(head.encode())
        self._lines = self._socket.makefile("rb")

    def event(self) -> tuple[str, dict[str, object]]:
        """Return the next event, but for those that tell how changes are heard of."""
        name = ""
        for line in self._lines:
            field, _, value = line.decode().strip().partition(": ")
            if field == "event":
                name = value
            elif field == "data" and name not in ("polling", "live"):
                return name, json.loads(value)
        raise EOFError

    def new(self) -> dict[str, object]:
        """Return the next `new`; a `changed` before it may be about what an earlier one has told."""
        name, data = self.event()
        while name == "changed":
            name, data = self.event()
        assert name == "new"
        return data

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def front(servers: dict[str, ApiServer]) -> ApiServer:
    return servers["front on"]


def test_a_post_is_told_whether_it_is_pushed_or_pulled(front: ApiServer, worker: Worker) -> None:
    live = Live(front, "?since=0")
    for number, author in enumerate((AUTHOR, STAR), start=1):
        post = PostCreatedFactory(author_id=author)
        worker.process(post)
        assert live.new() == {"newest_id": str(post.post_id), "count": number}
    live.close()


def test_a_deletion_and_an_unfollow_are_changes(front: ApiServer, worker: Worker) -> None:
    first, second = (PostCreatedFactory(author_id=AUTHOR) for _ in range(2))
    worker.process(first, second)
    live = Live(front, "?since=0")
    assert live.new() == {"newest_id": str(second.post_id), "count": 2}
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=second.post_id))
    assert live.event() == ("changed", {})
    worker.process(UserUnfollowedFactory(follower_id=READER, followee_id=AUTHOR))
    assert live.event() == ("changed", {})
    live.close()


def test_an_edit_is_a_change_whether_the_post_is_pushed_or_pulled(
    front: ApiServer, worker: Worker
) -> None:
    posts = [PostCreatedFactory(author_id=author) for author in (AUTHOR, STAR)]
    worker.process(*posts)
    live = Live(front, "?since=0")
    assert live.new() == {"newest_id": str(posts[1].post_id), "count": 2}
    for post in posts:
        worker.process(PostEditedFactory(author_id=post.author_id, post_id=post.post_id))
        assert live.event() == ("changed", {})
    live.close()


def test_a_stream_goes_on_from_the_last_event(front: ApiServer, worker: Worker) -> None:
    first, second = (PostCreatedFactory(author_id=AUTHOR) for _ in range(2))
    worker.process(first, second)
    live = Live(front, "?since=0", headers=f"Last-Event-ID: {first.post_id}\r\n")
    assert live.new() == {"newest_id": str(second.post_id), "count": 1}
    live.close()


def test_a_stream_ends_with_its_token(front: ApiServer, worker: Worker) -> None:
    live = Live(front, ttl=1)
    assert live.event() == ("end", {})
    live.close()


def test_beyond_the_limit_a_stream_is_refused(front: ApiServer, settings: Settings) -> None:
    settings.LIVE_MAX_STREAMS = 0
    answer = front.client(READER).get(f"/feeds/{READER}/live")
    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_streams")
    assert answer.headers["Retry-After"] == "5"


def test_what_is_wrong_with_a_request_is_said(api: ApiServer) -> None:
    bad = api.client(READER).get(f"/feeds/{READER}/live?since=x")
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_since")
    assert api.client(9).get(f"/feeds/{READER}/live").status_code == 403
    assert api.anonymous().get(f"/feeds/{READER}/live").status_code == 401


def test_without_the_front_there_are_no_streams(servers: dict[str, ApiServer]) -> None:
    answer = servers["front off"].client(READER).get(f"/feeds/{READER}/live")
    assert (answer.status_code, answer.json()["code"]) == (501, "live_unavailable")
