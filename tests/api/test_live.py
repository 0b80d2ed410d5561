"""`GET /feeds/{user}/live`: server-sent events of what changes in a feed."""

import json
import os
import socket
import threading
from array import array
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models.functions import Now
from django_redis import get_redis_connection
from pytest_django import Settings

from eventbus.database.sql import execute
from eventbus.models import ProcessedEvent
from feeds import live as live_feeds
from feeds import live_tickets
from feeds.announcements import Change, announce, channel_of
from feeds.live import Found, Wanted
from feeds.models import Feed
from feeds.read import here
from feedsite.authentication import issue_token
from feedsite.embedded.postgres import POSTGRES
from feedsite.embedded.valkey import VALKEY
from feedsite.front import live as streams
from tests.api.server import ApiServer
from tests.crash.outages import frozen, needs_embedded_postgres
from tests.eventbus.events import counted, eventually
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    follow_all,
    next_id,
)
from tests.feeds.hybrid import AUTHOR, READER, STAR, worker_of_both_kinds
from tests.feeds.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

needs_embedded_redis = pytest.mark.skipif(
    bool(os.environ.get(VALKEY.variable)),
    reason="freezes the embedded Valkey, and an external Redis is in use",
)


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """The reader follows an author whose posts are pushed and a star, whose posts are pulled."""
    return worker_of_both_kinds(settings)


class Live:
    """An open stream, read line by line from its socket."""

    def __init__(
        self,
        server: ApiServer,
        query: str = "",
        headers: str = "",
        ttl: int = 60,
        user: int = READER,
        path_user: int = 0,
        receive_bytes: int = 0,
    ) -> None:
        self._socket = socket.socket()
        if receive_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(20)
        self._socket.connect(("127.0.0.1", server.port))
        head = (
            f"GET /feeds/{path_user or user}/live{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {issue_token(user, '', ttl)}\r\n{headers}\r\n"
        )
        self._socket.sendall(head.encode())
        self._lines = self._socket.makefile("rb")

    def event(self) -> tuple[str, dict[str, object]]:
        """Return the next event, but for those that tell how changes are heard of."""
        name, data = self.any_event()
        while name in ("polling", "live"):
            name, data = self.any_event()
        return name, data

    def any_event(self) -> tuple[str, dict[str, object]]:
        """Return the next event. Raises `EOFError`."""
        name = ""
        for line in self._lines:
            field, _, value = line.decode().strip().partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                return name, json.loads(value)
        raise EOFError

    def until(self, wanted: str) -> None:
        """Read up to an event of that name."""
        while self.any_event()[0] != wanted:
            pass

    def comment(self) -> str:
        """Return the next comment."""
        return next(line.decode().strip() for line in self._lines if line.startswith(b":"))

    def new(self) -> tuple[int, object]:
        """Return what the next event counts, which is a `new`, and the newest post."""
        name, data = self.event()
        assert name == "new"
        return int(str(data["newest_id"])), data["count"]

    def drain(self) -> None:
        """Read what has come, to the end of the connection. Raises `TimeoutError`."""
        with suppress(ConnectionResetError):
            while self._socket.recv(65_536):
                pass

    def shut_down(self) -> None:
        """Have whoever reads come to the end."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def front(servers: dict[str, ApiServer], monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    """The API, once its streams hear what is announced; it soon notices who has left."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 1.0)
    front = servers["front on"]
    here.trust.refresh()  # the era of the test before went with its tables
    eventually(lambda: front.is_hearing)
    return front


def test_a_post_is_told_whether_it_is_pushed_or_pulled(front: ApiServer, worker: Worker) -> None:
    live = Live(front, "?since=0")
    for number, author in enumerate((AUTHOR, STAR, AUTHOR, STAR), start=1):
        post = PostCreatedFactory(author_id=author)
        worker.process(post)
        assert live.new() == (post.post_id, number)
    live.close()


def test_a_star_whose_followers_nobody_looks_for_is_heard(front: ApiServer, worker: Worker) -> None:
    first, second = (PostCreatedFactory(author_id=STAR) for _ in range(2))
    worker.process(first)
    Feed.objects.filter(user_id=STAR).update(pulled_since=Now() - timedelta(hours=13))
    live = Live(front, "?since=0")
    assert live.new() == (first.post_id, 1)
    worker.process(second)
    assert live.new() == (second.post_id, 2)
    live.close()


def test_of_a_batch_each_stream_is_told_what_is_in_its_feed(
    front: ApiServer, worker: Worker
) -> None:
    stranger = 4
    follow_all([9], followee=stranger)
    theirs = [PostCreatedFactory(author_id=AUTHOR) for _ in range(3)]
    live = Live(front, "?since=0")
    foreign = Live(front, "?since=0", user=9)
    others = [PostCreatedFactory(author_id=stranger) for _ in range(2)]
    worker.process(*theirs, *others)
    assert live.new() == (theirs[-1].post_id, 3)
    assert foreign.new() == (others[-1].post_id, 2)
    live.close()
    foreign.close()


def test_a_stream_counts_from_when_it_was_opened(front: ApiServer, worker: Worker) -> None:
    before, after = (PostCreatedFactory(author_id=AUTHOR) for _ in range(2))
    # What is on its way to the process when a stream opens is new to it rather than missed.
    witness = Live(front, "?since=0")
    worker.process(before)
    assert witness.new() == (before.post_id, 1)
    witness.close()
    live = Live(front)
    assert live.comment() == ": open"
    worker.process(after)  # whether it has been counted by then or not
    assert live.new() == (after.post_id, 1)
    live.close()


def test_a_post_that_is_told_twice_is_counted_once_and_nothing_else_is_told(
    front: ApiServer, worker: Worker
) -> None:
    first, second = (PostCreatedFactory(author_id=AUTHOR) for _ in range(2))
    live = Live(front, "?since=0")
    worker.process(first)
    assert live.new() == (first.post_id, 1)
    worker.process(first)
    worker.process(second)
    assert live.new() == (second.post_id, 2)
    live.close()


def test_a_deleted_post_that_is_replayed_is_not_told(front: ApiServer, worker: Worker) -> None:
    first, second = (PostCreatedFactory(author_id=AUTHOR) for _ in range(2))
    worker.process(first)
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=first.post_id))
    live = Live(front, "?since=0")
    ProcessedEvent.objects.all().delete()
    worker.process(first)
    worker.process(second)
    live.until("new")
    third = PostCreatedFactory(author_id=AUTHOR)
    worker.process(third)
    assert live.new() == (third.post_id, 2)
    live.close()


def test_more_than_a_hundred_are_a_hundred(front: ApiServer, worker: Worker) -> None:
    live = Live(front, "?since=0")
    posts = [PostCreatedFactory(author_id=AUTHOR) for _ in range(102)]
    worker.process(*posts[:99])
    assert live.new() == (posts[98].post_id, 99)
    for post in posts[99:]:
        worker.process(post)
        assert live.new() == (post.post_id, 100)
    live.close()


def test_a_new_post_is_told_without_a_question_to_postgresql(
    front: ApiServer, worker: Worker
) -> None:
    first = PostCreatedFactory(author_id=AUTHOR)
    worker.process(first)
    live = Live(front, "?since=0")
    assert live.new() == (first.post_id, 1)
    with transaction.atomic():
        execute("LOCK feeds, follows, posts, feed_entries IN ACCESS EXCLUSIVE MODE")
        second = next_id()
        here.pages.invalidate([READER], changes=[Change([READER], 0, [second])])
        assert live.new() == (second, 2)
    live.close()


def test_what_is_no_announcement_of_ours_is_passed_over(front: ApiServer, worker: Worker) -> None:
    live = Live(front, "?since=0")
    redis = get_redis_connection("default")
    era = here.trust.era()
    assert era
    for message in (b"x", b"12345678", b"\xff" * 24, announcement([10**6, 10**6, 10**6])):
        redis.publish(channel_of(era.name), message)
    # Of others who use this Redis for feeds of their own, whose users have the same ids.
    announce(redis, "another era", [Change([READER], 0, [next_id()])])
    post = PostCreatedFactory(author_id=AUTHOR)
    worker.process(post)
    assert live.new() == (post.post_id, 1)
    live.close()


def announcement(ids: list[int]) -> bytes:
    return array("q", ids).tobytes()


def test_a_deletion_and_an_unfollow_are_changes(front: ApiServer, worker: Worker) -> None:
    first, second, third = (PostCreatedFactory(author_id=AUTHOR) for _ in range(3))
    worker.process(first, second)
    live = Live(front, "?since=0")
    assert live.new() == (second.post_id, 2)
    worker.process(PostDeletedFactory(author_id=AUTHOR, post_id=second.post_id))
    assert live.event() == ("changed", {})
    eventually(lambda: not front.awaits_counts)
    worker.process(third)
    assert live.new() == (third.post_id, 2)
    worker.process(UserUnfollowedFactory(follower_id=READER, followee_id=AUTHOR))
    assert live.event() == ("changed", {})
    live.close()


def test_what_is_told_before_a_deletion_is_counted_is_set_right() -> None:
    stream = streams.Stream(Wanted(READER, 0), peer="")
    stream.ask()
    stream.counted(Found(0, [2, 1], [], None))
    stream.changed()
    stream.ask()
    stream.take(Counter())
    stream.announced([3])
    assert b'"count":3' in stream.take(Counter()), "the one that was deleted as well"
    stream.counted(Found(0, [3, 1], [], None))
    assert b"event: changed" in stream.take(Counter())
    assert stream.posts is not None
    assert stream.posts.count == 2


def test_who_follows_a_star_meanwhile_hears_of_their_posts(
    front: ApiServer, worker: Worker
) -> None:
    follow_all([10, 11, 12], followee=5)
    before, after = (PostCreatedFactory(author_id=5) for _ in range(2))
    worker.process(before)
    Feed.objects.filter(user_id=5).update(pulled_since=Now() - timedelta(hours=13))
    live = Live(front, "?since=0")
    worker.process(UserFollowedFactory(follower_id=READER, followee_id=5))
    live.until("changed")
    worker.process(after)
    while live.new() != (after.post_id, 2):
        pass
    live.close()


def test_an_edit_is_a_change_whether_the_post_is_pushed_or_pulled(
    front: ApiServer, worker: Worker
) -> None:
    posts = [PostCreatedFactory(author_id=author) for author in (AUTHOR, STAR)]
    worker.process(*posts)
    live = Live(front, "?since=0")
    assert live.new() == (posts[1].post_id, 2)
    for post in posts:
        worker.process(PostEditedFactory(author_id=post.author_id, post_id=post.post_id))
        assert live.event() == ("changed", {})
    live.close()


def test_a_stream_goes_on_from_the_last_event(front: ApiServer, worker: Worker) -> None:
    first, second = (PostCreatedFactory(author_id=AUTHOR) for _ in range(2))
    worker.process(first, second)
    live = Live(front, "?since=0", headers=f"Last-Event-ID: {first.post_id}\r\n")
    assert live.new() == (second.post_id, 1)
    live.close()


def test_a_stream_ends_with_its_token(front: ApiServer, worker: Worker) -> None:
    live = Live(front, ttl=1)
    assert live.event() == ("end", {})
    live.close()


def test_a_ticket_opens_the_stream_of_its_feed_until_it_expires(
    front: ApiServer, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(front, f"?since=0&ticket={live_tickets.issue(READER)}", user=9, path_user=READER)
    post = PostCreatedFactory(author_id=AUTHOR)
    worker.process(post)
    assert live.new() == (post.post_id, 1)
    live.close()
    monkeypatch.setattr(live_tickets, "SECONDS", 0)
    for ticket in ("x", live_tickets.issue(READER), live_tickets.issue(READER + 1)):
        refused = front.anonymous().get(f"/feeds/{READER}/live?ticket={ticket}")
        assert refused.status_code == 401
    by_token = Live(front, "?ticket=x")
    assert by_token.comment() == ": open"
    by_token.close()


def test_head_tells_of_a_stream_without_opening_one(front: ApiServer) -> None:
    eventually(lambda: front.open_streams == 0)
    told = front.client(READER).head(f"/feeds/{READER}/live")
    assert (told.status_code, told.headers["content-type"]) == (200, "text/event-stream")
    assert front.open_streams == 0


def test_beyond_the_limit_a_stream_is_refused(front: ApiServer, settings: Settings) -> None:
    eventually(lambda: front.open_streams == 0)
    settings.LIVE_MAX_STREAMS = 1
    live = Live(front)
    assert live.comment() == ": open"
    answer = front.client(READER).get(f"/feeds/{READER}/live")
    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_streams")
    assert answer.headers["Retry-After"] == "5"
    live.close()


def test_a_silent_stream_beats_and_who_has_left_is_noticed_by_it(
    front: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    eventually(lambda: front.open_streams == 0)
    live = Live(front)
    assert [live.comment() for _ in range(3)] == [": open", ": heartbeat", ": heartbeat"]
    eventually(lambda: counted("live_streams") == 1)
    live.close()
    eventually(lambda: counted("live_streams") == 0)


def test_events_are_counted(front: ApiServer, worker: Worker) -> None:
    before = counted("live_events_total", event="new")
    live = Live(front, "?since=0")
    worker.process(PostCreatedFactory(author_id=AUTHOR))
    live.new()
    eventually(lambda: counted("live_events_total", event="new") > before)
    live.close()


def test_a_client_that_does_not_read_is_cut_off(front: ApiServer, worker: Worker) -> None:
    before = counted("live_streams_cut_off_total")
    deaf = Live(front, "?since=0", receive_bytes=4_096)
    reading = Live(front, "?since=0", ttl=600)
    reader = threading.Thread(target=reading.drain, daemon=True)
    reader.start()

    def is_cut_off() -> bool:
        """Look, and tell a hundred posts more if not."""
        for _ in range(100):
            tell_of_a_post()
        return counted("live_streams_cut_off_total") > before

    eventually(is_cut_off, 60)
    deaf.drain()
    assert reader.is_alive()
    assert counted("live_streams_cut_off_total") == before + 1
    reading.shut_down()
    reader.join()


def tell_of_a_post() -> None:
    """Announce a post, which need not exist for that."""
    here.pages.invalidate([READER], changes=[Change([READER], 0, [next_id()])])


@needs_embedded_postgres
def test_while_postgresql_stands_still_streams_stay_and_are_told_afterwards(
    front: ApiServer, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(streams, "COUNT_SECONDS", 1.0)
    open_before, opened_meanwhile = Live(front, "?since=0"), None
    first, second = (PostCreatedFactory(author_id=AUTHOR) for _ in range(2))
    worker.process(first)
    assert open_before.new() == (first.post_id, 1)
    with frozen(POSTGRES):
        opened_meanwhile = Live(front, "?since=0")
        beats = [[live.comment() for _ in range(10)] for live in (open_before, opened_meanwhile)]
    assert all(told[-1] == ": heartbeat" for told in beats)
    assert opened_meanwhile.new() == (first.post_id, 1)
    worker.process(second)
    for live in (open_before, opened_meanwhile):
        assert live.new() == (second.post_id, 2)
        live.close()


@needs_embedded_redis
def test_while_redis_stands_still_streams_say_so_and_postgresql_is_asked(
    front: ApiServer, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_feeds, "POLL_SECONDS", 0.5)
    live = Live(front, "?since=0")
    first, second, third = (PostCreatedFactory(author_id=AUTHOR) for _ in range(3))
    worker.process(first)
    assert live.new() == (first.post_id, 1)
    with frozen(VALKEY):
        live.until("polling")
        opened_meanwhile = Live(front, "?since=0")
        assert opened_meanwhile.any_event() == ("polling", {})
        worker.process(second)
        for one in (live, opened_meanwhile):
            while one.new() != (second.post_id, 2):
                pass
    for one in (live, opened_meanwhile):
        one.until("live")
    worker.process(third)
    for one in (live, opened_meanwhile):
        assert one.new() == (third.post_id, 3)
        one.close()


def test_what_is_wrong_with_a_request_is_said(api: ApiServer) -> None:
    bad = api.client(READER).get(f"/feeds/{READER}/live?since=x")
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_since")
    assert api.client(9).get(f"/feeds/{READER}/live").status_code == 403
    assert api.anonymous().get(f"/feeds/{READER}/live").status_code == 401


def test_without_the_front_there_are_no_streams(servers: dict[str, ApiServer]) -> None:
    answer = servers["front off"].client(READER).get(f"/feeds/{READER}/live")
    assert (answer.status_code, answer.json()["code"]) == (501, "live_unavailable")
