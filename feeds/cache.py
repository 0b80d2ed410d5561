"""The cached first page of each feed in Redis, and how it never shows what an invalidation has outdated.

Two rules make that so:

1. **Lease.** A reader that misses puts a lease under the page's key and may replace only that very lease with its
   page. An invalidation deletes the key, lease or page: a reader that loaded before it can store nothing after it.
2. **Closing.** A worker that cannot reach Redis to invalidate closes the cache in PostgreSQL (`cache_state`) and waits
   `TRUST_SECONDS`, the time for which a process may rely on what it last read there. From then on every process reads
   from PostgreSQL alone. Once Redis answers again, someone opens the cache with a new generation; pages of the old
   one are never read again, whatever Redis kept.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache as memoize
from typing import cast

import structlog
from django.conf import settings
from django.db import DatabaseError
from django.db.models import F
from django.db.models.functions import Now
from django_redis import get_redis_connection
from redis import Redis, RedisError

from feeds.models import CacheState

TRUST_SECONDS = 1.0
CLOSED_AT_LEAST = timedelta(seconds=2 * TRUST_SECONDS)
LEASE_MS = 5_000
KEYS_A_COMMAND = 1_000

_LEASE, _PAGE = b"L", b"P"

_STORE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
    return 1
end
return 0
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the cache answered: a page (`hit`), the right to store one (`miss`), or neither (`bypass`)."""

    result: str
    page: bytes = b""
    key: str = ""
    lease: bytes = b""


BYPASS = Lookup("bypass")


def look_up(user_id: int) -> Lookup:
    """Return the cached first page of the user's feed, or a lease to `store` it. Redis down: a bypass."""
    generation = _trusted.generation()
    if generation is None:
        return BYPASS
    key = _key(user_id, generation)
    try:
        return _look_up(key)
    except RedisError as error:
        _trusted.distrust()
        log.warning("cache_unreachable", error=str(error))
        return BYPASS


def store(lookup: Lookup, page: bytes) -> bool:
    """Store the page under the lease of `lookup`; False if an invalidation came between, or Redis is away."""
    if not lookup.lease:
        return False
    try:
        return bool(_redis().eval(_STORE, 1, lookup.key, lookup.lease, _PAGE + page, settings.FEED_CACHE_TTL))
    except RedisError as error:
        _trusted.distrust()
        log.warning("cache_unreachable", error=str(error))
        return False


def invalidate(user_ids: Sequence[int]) -> None:
    """Drop the pages and leases of these users; call it after the commit of what changes their feeds.

    Returns only when no reader can see an outdated page any more. Raises `DatabaseError`.
    """
    # Read after the commit: a reader that stores under a later generation than this one has loaded after it too.
    state = _read_state()
    if state.closed_at is not None:
        return
    redis = _redis()
    try:
        pipeline = redis.pipeline(transaction=False)
        for start in range(0, len(user_ids), KEYS_A_COMMAND):
            some = user_ids[start : start + KEYS_A_COMMAND]
            pipeline.unlink(*[_key(user_id, state.generation) for user_id in some])
        pipeline.execute()
    except RedisError as error:
        log.warning("cache_closed", error=str(error))
        _close(state)


def _look_up(key: str) -> Lookup:
    value = cast(bytes | None, _redis().get(key))
    if value is None:
        lease = _LEASE + uuid.uuid4().bytes
        taken = _redis().set(key, lease, nx=True, px=LEASE_MS)
        return Lookup("miss", key=key, lease=lease if taken else b"")
    if value[:1] == _PAGE:
        return Lookup("hit", page=value[1:])
    return Lookup("miss")


def _close(state: CacheState) -> None:
    """Close the cache for every process and wait until each of them must have noticed."""
    CacheState.objects.filter(generation=state.generation, closed_at=None).update(closed_at=Now())
    time.sleep(TRUST_SECONDS)


def _reopen() -> None:
    """Open the cache with a new generation if Redis answers and every process has noticed that it was closed."""
    try:
        _redis().ping()
    except RedisError:
        return
    closed_long_enough = CacheState.objects.filter(closed_at__lt=Now() - CLOSED_AT_LEAST)
    if closed_long_enough.update(generation=F("generation") + 1, closed_at=None):
        log.info("cache_opened")


def _read_state() -> CacheState:
    """Return the state as committed now; a closed cache is opened on the way if it can be."""
    state = CacheState.objects.first() or CacheState.objects.get_or_create(id=1)[0]
    if state.closed_at is not None:
        _reopen()
        state = CacheState.objects.get()
    return state


class _Trusted:
    """What this process knows of `cache_state`, never older than `TRUST_SECONDS`."""

    def __init__(self) -> None:
        self._generation: int | None = None
        self._until = 0.0
        self._lock = threading.Lock()

    def generation(self) -> int | None:
        """Return the generation whose pages count, or None while the cache is closed or not to be trusted."""
        if time.monotonic() < self._until:
            return self._generation
        with self._lock:
            if time.monotonic() >= self._until:
                self._refresh()
            return self._generation

    def distrust(self) -> None:
        """Do without Redis for a moment: each read that waits for a dead one costs its time-out."""
        with self._lock:
            self._generation = None
            self._until = time.monotonic() + TRUST_SECONDS

    def _refresh(self) -> None:
        asked_at = time.monotonic()
        try:
            state = _read_state()
        except DatabaseError:
            # Without PostgreSQL nothing can change a feed either; what was true a moment ago still is.
            self._until = asked_at + TRUST_SECONDS
            return
        self._generation = None if state.closed_at is not None else state.generation
        self._until = asked_at + TRUST_SECONDS


_trusted = _Trusted()


@memoize
def _redis() -> Redis:
    client: Redis = get_redis_connection("default")
    return client


def _key(user_id: int, generation: int) -> str:
    return f"feed:{{{user_id}}}:{generation}"
