"""The cached first page: hit, miss, bypass, and never stale, through races, outages and restarts of
Redis.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import OperationalError
from pytest_django import Settings

from feeds import handlers
from feeds.handlers import FeedFact
from feeds.models import CacheState
from feeds.read import era, here, near_cache, page, pages
from feeds.read.era import Trust
from feeds.read.page import CachedPage, KeptValue
from feeds.read.pages import Pages
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    UserFollowedFactory,
    UserUnfollowedFactory,
    apply,
    follow_all,
)
from tests.feeds.looped import LoopedNearCache
from tests.feeds.valkeys import Server

pytestmark = pytest.mark.django_db(transaction=True)


class Reader:
    """Who reads in a test: a thread of Django's, or first the event loop, which keeps pages
    itself.
    """

    loop: LoopedNearCache | None = None


@pytest.fixture(params=["a thread", "the loop"])
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Server]:
    server = Server(tmp_path)
    pool = server.client().connection_pool
    monkeypatch.setattr(here, "pages", Pages(Trust(pool)))
    Reader.loop = LoopedNearCache(here.pages.trust) if request.param == "the loop" else None
    yield server
    if Reader.loop:
        Reader.loop.close()
    server.remove()


def a_page(body: bytes) -> CachedPage:
    return CachedPage(newest=b"", body=body)


def read(user: int, page: bytes, authors: Sequence[int] = ()) -> str:
    """Read as the API does, `page` being what PostgreSQL has; return what was shown and how it was
    had.
    """
    found = Reader.loop.find(user) if Reader.loop else None
    if found:
        return f"hit {found.body.decode()}"
    lookup = here.pages.look_up(user)
    if lookup.page:
        return f"hit {lookup.page.body.decode()}"
    here.pages.store(here.pages.watch(lookup, authors), a_page(page))
    return f"{lookup.result} {page.decode()}"


def notice() -> None:
    """Let the time pass after which a process looks at the state of the cache again."""
    here.pages.trust.forget()


def reopen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time pass for which a closed cache stays closed."""
    monkeypatch.setattr(era, "CLOSED_AT_LEAST_SECONDS", 0.0)
    notice()


def test_a_page_is_stored_at_the_first_read_and_shown_at_the_next(server: Server) -> None:
    assert read(1, b"page") == "miss page"
    assert read(1, b"newer page, but nobody said so") == "hit page"
    assert read(2, b"other") == "miss other"


@pytest.mark.parametrize("kind", ["post", "delete", "follow", "unfollow"])
def test_every_event_that_changes_a_feed_drops_its_page(server: Server, kind: str) -> None:
    follow_all([2], followee=1)
    post = PostCreatedFactory(author_id=1)
    facts: dict[str, FeedFact] = {
        "post": post,
        "delete": PostDeletedFactory(author_id=1, post_id=post.post_id),
        "follow": UserFollowedFactory(follower_id=2, followee_id=1),
        "unfollow": UserUnfollowedFactory(follower_id=2, followee_id=1),
    }
    fact = facts[kind]
    read(2, b"old")
    read(3, b"someone else's")
    apply(fact)
    handlers.FeedHandlers().after_commit([fact])
    assert read(2, b"new") == "miss new"
    assert read(3, b"") == "hit someone else's"


def test_who_loaded_before_an_invalidation_can_store_nothing_after_it(server: Server) -> None:
    slow = here.pages.look_up(1)  # loads the old page …
    here.pages.invalidate([1])
    assert here.pages.store(slow, a_page(b"old")) is False
    assert read(1, b"new") == "miss new"


def test_who_loaded_before_an_invalidation_cannot_overwrite_a_newer_page(server: Server) -> None:
    slow = here.pages.look_up(1)
    here.pages.invalidate([1])
    read(1, b"new")
    assert here.pages.store(slow, a_page(b"old")) is False
    assert read(1, b"") == "hit new"


def test_while_one_loads_the_others_read_without_storing(server: Server) -> None:
    first = here.pages.look_up(1)
    assert read(1, b"second") == "miss second"
    assert here.pages.store(first, a_page(b"first")) is True
    assert read(1, b"") == "hit first"


def test_without_redis_reads_bypass_and_workers_go_on(server: Server) -> None:
    read(1, b"page")
    server.kill()
    assert read(1, b"page") == "bypass page"
    here.pages.invalidate([1])
    here.pages.invalidate([1])
    assert CacheState.objects.get().closed_at is not None


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_no_stale_page_after_redis_comes_back(
    server: Server, monkeypatch: pytest.MonkeyPatch, outage: str
) -> None:
    read(1, b"old")
    if outage == "killed":
        server.kill()
    else:
        os.kill(server.process.pid, signal.SIGSTOP)
    here.pages.invalidate([1])  # a worker whose invalidation gets lost
    if outage == "killed":
        server.start()
    else:
        os.kill(server.process.pid, signal.SIGCONT)
    notice()
    assert read(1, b"new") == "bypass new"
    reopen(monkeypatch)
    assert read(1, b"new") == "miss new"
    assert read(1, b"") == "hit new"


def test_a_snapshot_does_not_bring_an_invalidated_page_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(1, b"old")
    server.client().save()
    here.pages.invalidate([1])
    server.kill()
    server.start()
    assert (
        server.client().exists(*server.client().scan_iter("*{1}*")) == 1
    )  # the old page is back in Redis …
    # … and in no answer. Whoever finds its connection broken leaves Redis alone for a moment.
    shown = [read(1, b"new")]
    while shown[-1] == "bypass new":
        time.sleep(0.1)
        shown.append(read(1, b"new"))
    assert shown[-1] == "miss new"
    assert read(1, b"") == "hit new"


def test_closing_by_hand_voids_all_pages(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    read(1, b"old")
    here.pages.close()
    notice()
    assert read(1, b"new") == "bypass new"
    reopen(monkeypatch)
    assert read(1, b"new") == "miss new"


def test_a_closed_cache_stays_closed_until_redis_answers(
    server: Server, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    here.pages.close()
    server.kill()
    reopen(monkeypatch)
    assert read(1, b"page") == "bypass page"
    assert CacheState.objects.get().closed_at is not None


# Kept in the process ------------------------------------------------------------------------------


def commands_of(client: redis.Redis) -> int:
    found: Any = client.info("stats")
    return int(found["total_commands_processed"])


def test_a_page_that_did_not_change_costs_no_round_trip(server: Server) -> None:
    client = server.client()
    read(1, b"page")
    read(1, b"")
    before = commands_of(client)
    for _ in range(100):
        assert read(1, b"") == "hit page"
    asked = commands_of(client) - before
    if Reader.loop:
        assert asked < 10  # this question, and whether Redis is still there
    else:
        assert 100 <= asked < 110


@pytest.mark.parametrize("change", ["unlink", "flushall", "expire"])
def test_what_changes_in_redis_changes_here_at_once(server: Server, change: str) -> None:
    read(1, b"old")
    assert read(1, b"") == "hit old"
    client = server.client()
    [key] = client.scan_iter("*{1}*")
    if change == "unlink":
        client.unlink(key)
    elif change == "flushall":
        client.flushall()
    else:
        client.pexpire(key, 1)
        time.sleep(0.02)
        assert client.get(key) is None
    client.ping()  # answered after the change is announced
    assert read(1, b"new") == "miss new"


def test_when_an_invalidation_returns_a_page_kept_here_is_gone(server: Server) -> None:
    shown = []
    for _ in range(150):
        read(1, b"page")
        assert read(1, b"") == "hit page"
        here.pages.invalidate([1])
        shown.append(read(1, b"new"))
        here.pages.invalidate([1])
    assert set(shown) == {"miss new"}


def test_a_post_of_a_watched_author_voids_the_page_and_no_other(server: Server) -> None:
    read(1, b"old", authors=[7, 8])
    read(2, b"other", authors=[8])
    assert read(1, b"") == "hit old"
    here.pages.invalidate([], authors=[7])
    assert read(1, b"new", authors=[7, 8]) == "miss new"
    assert read(1, b"") == "hit new"
    assert read(2, b"") == "hit other"


def test_who_loaded_before_a_watched_author_posted_stores_a_page_nobody_sees(
    server: Server,
) -> None:
    slow = here.pages.watch(here.pages.look_up(1), [7])  # loads the old page …
    here.pages.invalidate([], authors=[7])
    here.pages.store(slow, a_page(b"old"))
    assert read(1, b"new", authors=[7]) == "miss new"


def test_a_token_that_redis_has_lost_voids_the_page(server: Server) -> None:
    read(1, b"old", authors=[7])
    client = server.client()
    client.unlink(*client.scan_iter("*author:{7}*"))
    assert read(1, b"new", authors=[7]) == "miss new"


def test_whoever_follows_too_many_watched_authors_is_not_cached(server: Server) -> None:
    authors = range(1, pages.MAX_WATCHED + 2)
    lookup = here.pages.watch(here.pages.look_up(1), authors)
    assert (lookup.result, here.pages.store(lookup, a_page(b"page"))) == ("bypass", False)


def test_a_frozen_redis_is_not_believed_for_longer_than_a_second(server: Server) -> None:
    read(1, b"page")
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(1.1)
    assert read(1, b"page") == "bypass page"


def test_without_postgresql_cached_pages_are_shown_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(1, b"page")

    def gone() -> CacheState:
        time.sleep(0.5)  # as long as a connection takes to time out
        raise OperationalError("gone")

    monkeypatch.setattr(era, "read_state", gone)
    monkeypatch.setattr(era, "TRUST_SECONDS", 0.0)  # so that each read asks again
    monkeypatch.setattr(here.pages.trust, "_until", 0.0)
    assert read(1, b"") == "hit page"
    with ThreadPoolExecutor(8) as threads:
        started = time.monotonic()
        assert {read(1, b"") for _ in range(3)} == {"hit page"}
        first = threads.submit(read, 1, b"")
        time.sleep(0.1)
        waits = []
        for _ in range(5):
            asked = time.monotonic()
            assert read(1, b"") == "hit page"
            waits.append(time.monotonic() - asked)
        assert first.result() == "hit page"
    assert (
        min(waits) < 0.1 < time.monotonic() - started
    )  # while one of them asks, the others do not wait


def seconds_to_live(server: Server, user: int) -> int:
    """Return how long the cached page of the user will be kept."""
    (key,) = server.client().scan_iter(f"feed:{{{user}}}:*")
    left: int = server.client().ttl(key)
    return left


def test_adding_to_a_cached_page_does_not_make_it_live_longer(
    server: Server, settings: Settings
) -> None:
    settings.FEED_CACHE_TTL = 60
    read(1, b"page")
    settings.FEED_CACHE_TTL = 3_600
    assert (
        here.pages.store(here.pages.look_up(1), CachedPage(newest=b"3,2,1", body=b"page")) is True
    )
    assert here.pages.look_up(1).page == CachedPage(newest=b"3,2,1", body=b"page")
    # Pages that do not watch an author yet must be gone when he is left to those that do.
    assert seconds_to_live(server, 1) <= 60


def test_a_page_that_another_release_has_stored_is_not_read_but_replaced(server: Server) -> None:
    read(1, b"page")
    (key,) = server.client().scan_iter("feed:{1}:*")
    server.client().set(key, b"P1\n\n\na page of the release before")
    assert [read(1, b"new") for _ in range(2)] == ["miss new", "hit new"]


def test_a_page_that_another_release_has_stored_is_voided_like_any_other(server: Server) -> None:
    read(1, b"page")
    (key,) = server.client().scan_iter("feed:{1}:*")
    server.client().set(key, b"P9\n\n\na page of the next release")
    here.pages.invalidate([1])
    assert server.client().get(key) is None


def test_who_adds_to_a_page_does_not_add_to_one_that_looks_the_same_but_was_made_later(
    server: Server,
) -> None:
    read(1, b"page")
    slow = here.pages.look_up(1)  # reads the newest ids …
    here.pages.invalidate([1])  # … one of which is deleted, not on the page itself
    read(1, b"page")
    assert here.pages.store(slow, CachedPage(newest=b"3,2,1", body=b"page")) is False
    assert here.pages.look_up(1).page == a_page(b"page")


@pytest.mark.parametrize("server", ["the loop"], indirect=True)
def test_pages_read_only_here_do_not_look_unused_to_redis(server: Server) -> None:
    assert Reader.loop
    read(1, b"page", authors=[7])
    assert read(1, b"") == "hit page"
    client = server.client()
    keys = list(client.scan_iter("*{1}*")) + list(client.scan_iter("author:{7}*"))
    time.sleep(1.1)
    assert read(1, b"") == "hit page"
    assert all(client.object("idletime", key) >= 1 for key in keys)
    Reader.loop.touch()
    assert [client.object("idletime", key) for key in keys] == [0, 0]


def test_answers_at_many_addresses_take_no_more_memory_than_was_reckoned_with() -> None:
    kept = near_cache.KeptPage(KeptValue(b"nonce", page.sealed([], []), a_page(b"page")))
    for number in range(100):
        kept.keep_answer(f"http://host-{number}", b"body")
    found = [kept.answer_at(f"http://host-{number}") for number in range(100)]
    assert found.count(b"body") <= near_cache.ANSWERS_KEPT


def test_who_finds_a_page_outdated_by_a_pulled_post_has_a_lease_like_any_other(
    server: Server,
) -> None:
    read(1, b"old", authors=[7])
    here.pages.invalidate([], authors=[7])
    slow = here.pages.look_up(
        1
    )  # may take its time, but not so long that its page watches too few authors
    assert slow.result == "miss"
    assert seconds_to_live(server, 1) <= pages.LEASE_MS / 1_000
    assert read(1, b"new", authors=[7]) == "miss new"  # somebody else, who may not store it
    assert here.pages.store(here.pages.watch(slow, [7]), a_page(b"new")) is True
    assert read(1, b"", authors=[7]) == "hit new"
