"""A near cache on an event loop of its own, as each process of the API has one."""

import asyncio
import threading

import uvloop

from feeds.read.era import Trust
from feeds.read.near_cache import NearCache
from feeds.read.page import CachedPage
from tests.e2e.system import wait_until


class LoopedNearCache:
    """Finds pages on its loop, for the thread of a test."""

    def __init__(self, trust: Trust) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._trust = trust
        self.near = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)
        wait_until(lambda: self.near.redis.connected)

    async def _start(self) -> NearCache:
        near = NearCache(self._loop, self._trust)
        near.start()
        return near

    def find(self, user_id: int) -> CachedPage | None:
        """Return the page that the loop would answer with at once."""
        self._trust.era()  # as the keeper does, all the time
        found = asyncio.run_coroutine_threadsafe(self.near.find(user_id), self._loop).result(5)
        return found.page if found else None

    def touch(self) -> None:
        """Tell Redis at once what was read, and return when it has heard."""

        async def touch() -> None:
            self.near.touch()
            await self.near.redis.ask("PING")

        asyncio.run_coroutine_threadsafe(touch(), self._loop).result(5)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.near.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
