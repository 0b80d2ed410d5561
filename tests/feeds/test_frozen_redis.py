"""A page that the event loop keeps needs no Redis, so nobody who asks for it waits for one that
stands still.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from redis import RedisError

from feeds import loop_redis
from feeds.read import near_cache
from feeds.read.era import Trust
from feeds.read.page import CachedPage
from feeds.read.pages import Pages
from feedsite.front import keepers
from tests.e2e.system import wait_until
from tests.feeds.looped import LoopedNearCache
from tests.feeds.valkeys import Server

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.remove()


@pytest.fixture
def trust(server: Server) -> Trust:
    return Trust(server.client().connection_pool)


@pytest.fixture
def looped(server: Server, trust: Trust) -> Iterator[LoopedNearCache]:
    """The pages of an event loop, which keeps that of user 1."""
    pages = Pages(trust)
    pages.store(pages.look_up(1), CachedPage(newest=b"", body=b"page"))
    looped = LoopedNearCache(trust)
    assert looped.find(1)
    yield looped
    looped.close()


@pytest.fixture
def long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a silence last long enough for a test on a slow machine to look."""
    monkeypatch.setattr(loop_redis, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(near_cache, "SILENT_SECONDS", 60.0)


@pytest.fixture
def long_trust(trust: Trust, looped: LoopedNearCache) -> None:
    trust._until += 60


def freeze(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGSTOP)


def thaw(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGCONT)


def is_answered(looped: LoopedNearCache) -> bool:
    """Ask Redis on the loop; tell whether it answers in time."""

    async def ask() -> bool:
        try:
            return bool(await looped.near.redis.ask("PING"))
        except RedisError:
            return False

    return looped.run(ask())


def is_kept(looped: LoopedNearCache) -> bool:
    async def look() -> bool:
        return looped.near.kept(1) is not None

    return looped.run(look())


@pytest.mark.usefixtures("long_silence", "long_trust")
def test_a_page_that_is_kept_is_shown_while_redis_does_not_answer(
    server: Server, looped: LoopedNearCache
) -> None:
    freeze(server)
    assert is_kept(looped)
    assert not is_answered(looped)
    assert is_kept(looped)
    assert not is_answered(looped)
    assert looped.near.redis.connected
    thaw(server)
    wait_until(lambda: is_answered(looped))
    assert is_kept(looped), "it had only stumbled"


@pytest.mark.usefixtures("long_silence", "long_trust")
def test_while_redis_does_not_answer_nobody_else_waits_for_it(
    server: Server, looped: LoopedNearCache
) -> None:
    freeze(server)
    assert not is_answered(looped)

    async def is_told_at_once() -> bool:
        return looped.near.redis.ask("PING").done()

    assert looped.run(is_told_at_once())


def test_when_redis_stays_silent_nothing_kept_is_believed_and_no_view_asks_it(
    server: Server, looped: LoopedNearCache, trust: Trust
) -> None:
    trust._until += 60
    freeze(server)
    wait_until(lambda: not looped.near.redis.connected)
    wait_until(lambda: trust.now() is None)
    assert not is_kept(looped)
    thaw(server)
    wait_until(lambda: trust.era() is not None)
    wait_until(lambda: looped.near.redis.connected)


@pytest.mark.usefixtures("long_silence", "long_trust")
def test_who_asks_for_a_page_that_is_not_kept_soon_does_without_redis(
    server: Server, looped: LoopedNearCache, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_redis, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(near_cache, "PATIENCE_SECONDS", 0.075)
    freeze(server)
    assert looped.find(2) is None
    assert trust.era() is None, "no view asks it either"
    assert is_kept(looped)

    async def is_told_at_once() -> bool:
        looking = asyncio.ensure_future(looped.near.find(3))
        await asyncio.sleep(0)
        return looking.done()

    assert looped.run(is_told_at_once())
    thaw(server)
    assert is_answered(looped)
    assert not looped.run(is_told_at_once()), "it is asked again"
    wait_until(lambda: trust.era() is not None)


def test_what_is_known_of_a_redis_that_stands_still_lasts_until_it_was_asked_again(
    server: Server, trust: Trust
) -> None:
    freeze(server)
    trust.refresh()
    seconds_left = trust._until - time.monotonic()
    assert seconds_left > keepers.ERA_EVERY_SECONDS + settings.REDIS_TIMEOUT
