"""First pages of feeds kept in the API's process, for its event loop, until Redis says that they
changed.

A round trip to Redis costs more than the rest of a cached read. So the loop reads through one
connection, on which Redis announces every change to a key that was read on it (RESP3 client
tracking). Announcements and answers come in order on that connection, so whoever has read all that
has arrived knows what changed; a page is used only then, and only while an answer on the connection
is not older than a moment. What is not kept here, all who want it in a turn of the loop ask for in
one round trip.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis import Connection, RedisError

from eventbus import breaker
from feeds.loop_redis import SILENT_SECONDS, LoopRedis, Silent
from feeds.read.era import Trust, ask_identity
from feeds.read.page import (
    AUTHOR_KEYS,
    KeptValue,
    author_key,
    page_key,
    read_value,
    sealed,
    watched_by,
)
from feeds.read.pages import KEYS_A_COMMAND

KEPT_BYTES = 64 * 1024 * 1024  # in a process, of all cells
# Of what keeps a value, beside the value: keys, dictionaries, objects.
OVERHEAD_BYTES = 600
# At most that many addresses of the same page, such as by HTTP and HTTPS.
ANSWERS_KEPT = 2
CHECK_EVERY_SECONDS = 0.25
# A reader waits no longer for Redis: PostgreSQL has answered by then.
PATIENCE_SECONDS = 0.075
TOUCH_EVERY_SECONDS = 60.0


class KeptPage:
    """A cached page in this process, and the bodies of answers made of it, by the address they were
    asked at.
    """

    __slots__ = ("_answers", "bytes", "page", "seal", "used", "watched", "whole_as_of")

    def __init__(self, kept: KeptValue) -> None:
        self.seal, self.page = kept.seal, kept.page
        self.watched = watched_by(kept.seal)
        value_bytes = len(kept.page.body) + len(kept.page.newest) + 2 * len(kept.seal)
        self.bytes = (1 + ANSWERS_KEPT) * value_bytes + OVERHEAD_BYTES
        self.whole_as_of = -1
        self.used = True  # since Redis was told last
        self._answers: dict[str, bytes] = {}

    def answer_at(self, address: str) -> bytes | None:
        """Return the body that was made for this address, if it is kept."""
        return self._answers.get(address)

    def keep_answer(self, address: str, body: bytes) -> bytes:
        """Keep a body for the next who asks at this address, and return it."""
        # Clients choose the address: it must not cost more than was reckoned with.
        if len(self._answers) >= ANSWERS_KEPT:
            self._answers.clear()
        self._answers[address] = body
        return body


class Reading:
    """A value on its way from Redis, for all who want it; void once Redis has announced that it
    changed meanwhile.
    """

    __slots__ = ("value", "void")

    def __init__(self, value: "asyncio.Future[bytes | None]") -> None:
        self.value = value
        self.void = False


class NearCache:
    """Finds first pages of a cell without waiting for anyone else; all methods are for the loop it
    was made for.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, trust: Trust, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._loop = loop
        self._trust = trust
        self._most_bytes = kept_bytes
        self.redis = LoopRedis(loop, trust.pool, breaker.of(trust.cell).redis, self)
        self._pages: dict[bytes, KeptPage] = {}
        self._tokens: dict[bytes, bytes] = {}
        self._bytes = 0
        self._tokens_changed = 0  # how often; a seal that was whole is so until then
        self._readings: dict[bytes, Reading] = {}
        self._batch: list[tuple[bytes, Reading]] = []
        self._is_asking = False
        self._is_overdue = False  # and nobody waits for the answer any more
        self._identity = self._next_identity = ""
        self._closed = False

    def start(self) -> None:
        """Connect to Redis; returns at once."""
        self.redis.start()
        self._check()
        self._touch_later()

    def close(self) -> None:
        self._closed = True
        self.redis.close()

    def kept(self, user_id: int) -> KeptPage | None:
        """Return the first page of the user's feed if it is kept here and known to be right."""
        key = self._key(user_id)
        page = self._pages.get(key) if key else None
        if page is None or (page.watched and page.whole_as_of != self._tokens_changed):
            return None
        page.used = True
        return page

    async def find(self, user_id: int) -> KeptPage | None:
        """Return the cached first page of the user's feed; None: there is none, or that cannot be
        told now.
        """
        key = self._key(user_id)
        era = self._trust.now()
        if key is None or era is None:
            return None
        try:
            page = self._pages.get(key) or await self._read_page(key)
            if page is not None and page.watched and page.whole_as_of != self._tokens_changed:
                page = await self._checked(page, era.name)
        except RedisError:
            return None
        if page is not None:
            page.used = True
        return page

    def _check(self) -> None:
        """Make the connection anew when it leads to a Redis that does not count any more."""
        if self._closed:
            return
        era = self._trust.now()
        if era is not None and self._identity and era.identity != self._identity:
            self.redis.reconnect(f"Redis is {self._identity}, and another one counts.")
        self._loop.call_later(CHECK_EVERY_SECONDS, self._check)

    def _touch_later(self) -> None:
        if not self._closed:
            self._loop.call_later(TOUCH_EVERY_SECONDS, self.touch)

    def touch(self) -> None:
        """Have Redis know which pages were read here: a full Redis drops what it takes for
        unused.
        """
        era = self._trust.now()
        keys: list[bytes] = []
        for key, page in self._pages.items():
            if page.used and era is not None:
                page.used = False
                keys.append(key)
                keys += [author_key(author, era.name).encode() for author in page.watched]
        for start in range(0, len(keys), KEYS_A_COMMAND):
            touched = self.redis.ask("TOUCH", *keys[start : start + KEYS_A_COMMAND])
            touched.add_done_callback(_retrieve)
        self._touch_later()

    def _key(self, user_id: int) -> bytes | None:
        """Return the key of the user's page, with all known that Redis has announced; None if it
        cannot be trusted.
        """
        era = self._trust.now()
        if era is None or era.identity != self._identity or not self.redis.connected:
            return None
        self.redis.catch_up()
        if self._loop.time() - self.redis.heard_at > SILENT_SECONDS:
            return None
        return page_key(user_id, era.name).encode()

    async def _read_page(self, key: bytes) -> KeptPage | None:
        reading = self._reading_of(key)
        value = await reading.value
        found = read_value(value) if value else None
        if found is None:
            return None
        kept = self._pages.get(key)
        if kept is None:
            kept = KeptPage(found)
            if not reading.void:
                self._pages[key] = kept
                self._bytes += kept.bytes
                self._keep_within_bounds()
        return kept

    async def _checked(self, kept: KeptPage, era: str) -> KeptPage | None:
        """Return the page if no author that it watches has posted since, as far as Redis has
        told.
        """
        as_of = self._tokens_changed
        tokens = await self._tokens_of(kept.watched, era)
        if None in tokens or sealed(kept.watched, tokens) != kept.seal:
            return None
        kept.whole_as_of = as_of
        return kept

    async def _tokens_of(self, authors: Sequence[int], era: str) -> list[bytes | None]:
        keys = [author_key(author, era).encode() for author in authors]
        missing = [key for key in keys if key not in self._tokens]
        found: dict[bytes, bytes | None] = {}
        readings = [(key, self._reading_of(key)) for key in missing]
        for key, reading in readings:
            token = found[key] = await reading.value
            if token is not None and not reading.void:
                self._keep_token(key, token)
        return [found[key] if key in found else self._tokens.get(key) for key in keys]

    def _keep_token(self, key: bytes, token: bytes) -> None:
        if key not in self._tokens:
            self._tokens[key] = token
            self._bytes += OVERHEAD_BYTES
            self._keep_within_bounds()

    def _reading_of(self, key: bytes) -> Reading:
        if self._is_overdue:
            raise Silent("Redis does not answer now.")
        reading = self._readings.get(key)
        if reading is None or reading.void:
            reading = self._readings[key] = Reading(self._loop.create_future())
            # One question is under way at a time; who comes meanwhile goes into the next, together.
            if not self._batch and not self._is_asking:
                self._loop.call_soon(self._ask_for_batch)
            self._batch.append((key, reading))
        return reading

    def _ask_for_batch(self) -> None:
        readings, self._batch = self._batch, []
        self._is_asking = True
        answer = self.redis.ask("MGET", *[key for key, _reading in readings])
        patience = self._loop.call_later(PATIENCE_SECONDS, self._give_up, readings, answer)
        answer.add_done_callback(partial(self._hand_out, readings, patience))

    def _give_up(
        self, readings: list[tuple[bytes, Reading]], answer: "asyncio.Future[list[bytes | None]]"
    ) -> None:
        """Have nobody wait for Redis before it has answered this."""
        self.redis.catch_up()
        if answer.done():  # it was the loop that was slow
            return
        self._is_overdue = True
        self._trust.doubt()
        waiting, self._batch = [*readings, *self._batch], []
        for key, reading in waiting:
            if self._readings.get(key) is reading:
                del self._readings[key]
            if not reading.value.done():
                reading.value.set_exception(Silent("Redis did not answer in time."))

    def _hand_out(
        self,
        readings: list[tuple[bytes, Reading]],
        patience: asyncio.TimerHandle,
        answered: "asyncio.Future[list[bytes | None]]",
    ) -> None:
        patience.cancel()
        self._is_asking = self._is_overdue = False
        if self._batch:
            self._ask_for_batch()
        error = answered.exception()
        values: Sequence[bytes | None] = [None] * len(readings) if error else answered.result()
        for (key, reading), value in zip(readings, values, strict=True):
            if self._readings.get(key) is reading:
                del self._readings[key]
            if reading.value.done():
                continue
            if error is None:
                reading.value.set_result(value)
            else:
                reading.value.set_exception(error)

    def _keep_within_bounds(self) -> None:
        # The oldest goes first; one that is read much comes back at its next read.
        while self._bytes > self._most_bytes and self._pages:
            key = next(iter(self._pages))
            self._bytes -= self._pages.pop(key).bytes
        while self._bytes > self._most_bytes and self._tokens:
            self._drop_token(next(iter(self._tokens)))

    def _drop_token(self, key: bytes) -> None:
        del self._tokens[key]
        self._bytes -= OVERHEAD_BYTES

    def _forget_all(self) -> None:
        self._pages.clear()
        self._tokens.clear()
        self._bytes = 0
        self._tokens_changed += 1
        for reading in self._readings.values():
            reading.void = True

    # What the connection tells.

    def prepare(self, connection: Connection) -> None:
        """Have Redis announce changes on the new connection, and learn which Redis it is."""
        connection.send_command("CLIENT", "TRACKING", "ON")  # type: ignore[no-untyped-call]
        connection.read_response()
        self._next_identity = ask_identity(connection)

    def connected(self) -> None:
        """Begin with nothing: what was announced before is not known."""
        self._identity = self._next_identity
        self._forget_all()

    def lost(self, error: Exception) -> None:
        """Trust nothing that was kept.

        The views ask Redis themselves meanwhile, unless it is silent: each would wait for it.
        """
        self._identity = ""
        self._forget_all()
        if isinstance(error, Silent):
            self._trust.distrust(error)

    def announced(self, message: list[Any]) -> None:
        """Forget what has changed."""
        if message[0] != b"invalidate":
            return
        keys = message[1]
        if keys is None:  # the whole database was emptied
            self._forget_all()
            return
        for key in keys:
            if page := self._pages.pop(key, None):
                self._bytes -= page.bytes
            if key in self._tokens:
                self._drop_token(key)
            if reading := self._readings.get(key):
                reading.void = True
            if key.startswith(AUTHOR_KEYS):
                self._tokens_changed += 1


def _retrieve(answer: "asyncio.Future[Any]") -> None:
    """Take note of an answer that nobody waits for."""
    answer.exception()
