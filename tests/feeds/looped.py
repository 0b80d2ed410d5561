"""A near cache on an event loop of its own, as each process of the API has one."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from feeds.read.era import Trust
from feeds.read.near_cache import NearCache
from feeds.read.page import CachedPage
from tests.e2e.system import PATIENCE, wait_until

T = TypeVar("T")


class LoopedNearCache:
    """Finds pages on its loop, for the thread of a test."""

    def __init__(self, trust: Trust) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._trust = trust
        self.near = self.run(self._start())
        wait_until(lambda: self.near.redis.connected)

    async def _start(self) -> NearCache:
        near = NearCache(self._loop, self._trust)
        near.start()
        return near

    def find(self, user_id: int) -> CachedPage | None:
        """Return the page that the loop would answer with at once."""
        self._trust.era()  # as the keeper does, all the time
        found = self.run(self.near.find(user_id))
        return found.page if found else None

    def run(self, asked: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return what it does."""
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(PATIENCE)

    def touch(self) -> None:
        """Tell Redis at once what was read, and return when it has heard."""

        async def touch() -> None:
            self.near.touch()
            await self.near.redis.ask("PING")

        self.run(touch())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.near.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
