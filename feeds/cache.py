"""The cached first page of each feed in Redis, and how it never shows what an invalidation has outdated.

The API's event loop also keeps pages in the process itself (`feeds.near_cache`). Four rules keep them all fresh:

1. **Lease.** A reader that misses puts a lease under the page's key and may replace only that very lease with its
   page. An invalidation deletes the key, lease or page: a reader that loaded before it can store nothing after it.
2. **Watching.** A post that is pulled invalidates no page, of which there may be millions. Instead a page names the
   authors it may have to pull from, sealed with a token of each; a new post gives its author a new token, and a page
   whose seal is broken is a miss.
3. **Closing.** A worker that cannot reach Redis to invalidate closes the cache in PostgreSQL (`cache_state`) and waits
   `TRUST_SECONDS`, the time for which a process may rely on what it last read there. From then on every process reads
   from PostgreSQL alone. Once Redis answers again, someone opens the cache with a new generation; pages of the old
   one are never read again, whatever Redis kept.
4. **Run id.** A Redis that restarts from a snapshot brings back pages that were invalidated since. So the server's run
   id is part of each key; and redis-py mends a broken connection silently, so a look-up during which a connection was
   made asks for the run id again.
"""

import hashlib
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache as memoize
from typing import NamedTuple, cast

import structlog
from django import db
from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone
from django_redis import get_redis_connection
from redis import Connection, ConnectionPool, Redis, RedisError

from feeds import announcements
from feeds.models import CacheState, new_generation

TRUST_SECONDS = 1.0
CLOSED_AT_LEAST = timedelta(seconds=2 * TRUST_SECONDS)
LEASE_MS = 5_000
LOOK_UPS = 3
KEYS_A_COMMAND = 1_000
MAX_WATCHED = 1_000
REFRESH_PATIENCE_SECONDS = 0.25

# A value is a lease, or a page: its seal, the authors it watches, the newest ids, and the body, a line each. The number
# is raised with every change to what a page looks like. It is not part of the key, for old and new processes that run
# side by side during a release void each other's pages.
LEASE, PAGE = b"L", b"P2"

# With what the value expires: 'EX' seconds, 'PX' milliseconds, or 'KEEPTTL'.
_REPLACE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], unpack(ARGV, 3))
    return 1
end
return 0
"""

log = structlog.get_logger(__name__)


class CachedPage(NamedTuple):
    """The first page of a feed as it is sent, and the ids of the newest posts, as `feeds.views` has made them."""

    newest: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the cache answered: a page (`hit`), the right to store one (`miss`), or neither (`bypass`)."""

    result: str
    page: CachedPage | None = None
    key: str = ""
    replaces: bytes = b""  # what a page to be stored must find in its place
    era: str = ""
    seal: bytes = b"\n"  # and the authors it seals


BYPASS = Lookup("bypass")


def look_up(user_id: int) -> Lookup:
    """Return the cached first page of the user's feed, or a lease to `store` it. Redis down: a bypass."""
    for _ in range(LOOK_UPS):
        connections = _connections_made
        era = _trusted.era()
        if era is None:
            return BYPASS
        try:
            lookup = _look_up(user_id, era)
        except RedisError as error:
            _trusted.distrust(error)
            return BYPASS
        if connections == _connections_made or _trusted.still(era):
            return lookup
    return BYPASS


def watch(lookup: Lookup, authors: Sequence[int]) -> Lookup:
    """Return `lookup` for a page that watches `authors`; to be called before what goes into the page is read."""
    if not (authors and lookup.replaces):
        return lookup
    if len(authors) > MAX_WATCHED:
        return BYPASS
    try:
        tokens = _tokens(authors, lookup.era)
    except RedisError as error:
        _trusted.distrust(error)
        return BYPASS
    return replace(lookup, seal=sealed(authors, tokens))


def store(lookup: Lookup, page: CachedPage) -> bool:
    """Store the page in place of what `lookup` found; False if an invalidation came between, or Redis is away."""
    if not lookup.replaces:
        return False
    value = b"\n".join([PAGE + lookup.seal, *page])
    # A page that is added to lives no longer for it: it watches only those who were pulled when it was made.
    expiry = ["KEEPTTL"] if lookup.page else ["EX", settings.FEED_CACHE_TTL]
    try:
        return _replace(lookup.key, lookup.replaces, value, *expiry)
    except RedisError as error:
        _trusted.distrust(error)
        return False


def era_now() -> str | None:
    """Return the era whose pages count, at once; None when in doubt. For an event loop, beside `refresh_era`."""
    return _trusted.now()


def refresh_era() -> None:
    """Ask PostgreSQL and Redis for the era: for a thread that does so several times in `TRUST_SECONDS`. Never fails."""
    _trusted.refresh()


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache holds for a user's first page, told without taking a lease."""

    state: str
    is_hit: bool = False
    seconds_left: int = 0
    page_bytes: int = 0
    watched: Sequence[int] = ()


def inspect(user_id: int) -> Kept:
    """Tell what the next read of the user's first page will find. Redis down: that."""
    era = _trusted.era()
    if era is None:
        return Kept("closed, or Redis is away: reads come from PostgreSQL")
    try:
        return _inspect(user_id, era)
    except RedisError as error:
        _trusted.distrust(error)
        return Kept(f"Redis is away ({type(error).__name__}): reads come from PostgreSQL")


def invalidate(user_ids: Sequence[int], authors: Collection[int] = ()) -> None:
    """Make void the pages and leases of these users, and all pages that watch these authors.

    Call it after the commit of what changes their feeds. Returns only when no reader can see an outdated page any
    more. Raises `DatabaseError`.
    """
    # Read after the commit: a reader that stores in a later era than this one has loaded after it too.
    state = _read_state()
    if state.closed_at is not None:
        wait_until_noticed(state.closed_at)
        return
    try:
        _void(user_ids, authors, _era(state.generation))
    except RedisError as error:
        log.warning("cache_unreachable", error=str(error))
        close()


def close() -> None:
    """Make every page cached so far void, for every process, and return when each must have noticed.

    For changes to more feeds than are worth naming. The cache opens again by itself after a moment.
    """
    mark_closed()
    wait_until_noticed()


def mark_closed() -> None:
    """Close the cache with the commit of the current transaction; whoever commits then calls `wait_until_noticed`."""
    CacheState.objects.update_or_create(id=1, defaults={"closed_at": Now()})
    log.info("cache_closed")


def wait_until_noticed(closed_at: datetime | None = None) -> None:
    """Wait until no process relies on a cache that was closed at `closed_at`, by default just now."""
    passed = (timezone.now() - closed_at).total_seconds() if closed_at else 0.0
    time.sleep(min(max(TRUST_SECONDS - passed, 0.0), TRUST_SECONDS))


def _replace(key: str, old: bytes, new: bytes, *expiry: str | int) -> bool:
    return bool(_redis().eval(_REPLACE, 1, key, old, new, *expiry))


def _look_up(user_id: int, era: str) -> Lookup:
    key, lease = page_key(user_id, era), _new_lease()
    # One round trip: the value, or where there was none our lease in its place.
    value = cast(bytes | None, _redis().set(key, lease, nx=True, px=LEASE_MS, get=True))
    if value is None:
        return Lookup("miss", key=key, era=era, replaces=lease)
    if not value.startswith(PAGE):
        return Lookup("miss")
    seal, page = read_page(value)
    if not _is_whole(seal, era):
        taken = _replace(key, value, lease, "PX", LEASE_MS)
        return Lookup("miss", key=key, era=era, replaces=lease if taken else b"")
    return Lookup("hit", page=page, key=key, era=era, replaces=value, seal=seal)


def _new_lease() -> bytes:
    return LEASE + uuid.uuid4().bytes


def _inspect(user_id: int, era: str) -> Kept:
    key = page_key(user_id, era)
    value = cast(bytes | None, _redis().get(key))
    if value is None:
        return Kept("miss: nothing is kept")
    seconds_left = max(0, _redis().ttl(key))
    if not value.startswith(PAGE):
        return Kept("miss: a reader is about to store the page", seconds_left=seconds_left)
    seal, page = read_page(value)
    whole = _is_whole(seal, era)
    state = "hit" if whole else "miss: an author that the page watches has posted since"
    return Kept(state, whole, seconds_left, len(page.body), watched_by(seal))


def read_page(value: bytes) -> tuple[bytes, CachedPage]:
    """Return the seal, which names the authors watched, and the page."""
    digest, authors, newest, body = value.removeprefix(PAGE).split(b"\n", 3)
    return digest + b"\n" + authors, CachedPage(newest, body)


def watched_by(seal: bytes) -> list[int]:
    """Return the authors whose tokens the seal was made of."""
    authors = seal.partition(b"\n")[2]
    return [int(author) for author in authors.split(b",")] if authors else []


def _is_whole(seal: bytes, era: str) -> bool:
    authors = watched_by(seal)
    if not authors:
        return True
    tokens = cast(
        list[bytes | None], _redis().mget([author_key(author, era) for author in authors])
    )
    return None not in tokens and sealed(authors, tokens) == seal


def sealed(authors: Sequence[int], tokens: Iterable[bytes | None]) -> bytes:
    """Return the seal of a page that watches `authors`, whose tokens are these."""
    digest = hashlib.blake2b(b"".join(token or b"" for token in tokens), digest_size=16).hexdigest()
    return f"{digest}\n{','.join(map(str, authors))}".encode()


def _tokens(authors: Sequence[int], era: str) -> list[bytes | None]:
    """Return the token of each author, a new one where there is none."""
    keys = [author_key(author, era) for author in authors]
    tokens = cast(list[bytes | None], _redis().mget(keys))
    missing = [key for key, token in zip(keys, tokens, strict=True) if token is None]
    if not missing:
        return tokens
    pipeline = _redis().pipeline(transaction=False)
    for key in missing:
        pipeline.set(key, uuid.uuid4().bytes, nx=True, ex=_token_ttl())
    pipeline.execute()
    return cast(list[bytes | None], _redis().mget(keys))


def _token_ttl() -> int:
    # A page that outlives the token of an author it watches is a miss, no more.
    return 2 * cast(int, settings.FEED_CACHE_TTL)


def _void(user_ids: Sequence[int], authors: Collection[int], era: str) -> None:
    pipeline = _redis().pipeline(transaction=False)
    for author in authors:
        pipeline.set(author_key(author, era), uuid.uuid4().bytes, ex=_token_ttl())
    for start in range(0, len(user_ids), KEYS_A_COMMAND):
        pipeline.unlink(
            *[page_key(user_id, era) for user_id in user_ids[start : start + KEYS_A_COMMAND]]
        )
    announcements.announce(pipeline, user_ids, authors)
    pipeline.execute()
    # Redis answers us before it announces the change to others, but announces it before it answers another question.
    _redis().ping()


def _read_state() -> CacheState:
    """Return the state as committed now; a cache that has been closed for long enough is opened if Redis answers."""
    state = CacheState.objects.first() or CacheState.objects.get_or_create(id=1)[0]
    if state.closed_at is not None and timezone.now() - state.closed_at > CLOSED_AT_LEAST:
        _try_to_open()
        state.refresh_from_db()
    return state


def _try_to_open() -> None:
    closed_long_enough = CacheState.objects.filter(closed_at__lt=Now() - CLOSED_AT_LEAST)
    try:
        _redis().ping()
    except RedisError:
        # Nobody asks again for a while: each question to a dead server costs its time-out.
        closed_long_enough.update(closed_at=Now())
    else:
        closed_long_enough.update(generation=new_generation(), closed_at=None)
        log.info("cache_opened")


def _era(generation: int) -> str:
    """Return the part of each key that changes whenever earlier pages must not be read any more."""
    server = cast(dict[str, str], _redis().info("server"))
    return f"{generation}.{server['run_id']}"


class _Trusted:
    """The era as this process last read it, never relied on for longer than `TRUST_SECONDS`.

    With one exception: without PostgreSQL nothing can change a feed either, so what was true a moment ago still is.
    """

    def __init__(self) -> None:
        self._era: str | None = None
        self._generation: int | None = None  # as last read; None while the cache was closed
        self._until = 0.0
        self._unreadable = False
        self._lock = threading.Lock()

    def era(self) -> str | None:
        """Return the era whose pages count, or None while the cache is closed or Redis is away."""
        if time.monotonic() < self._until:
            return self._era
        # One thread asks. With PostgreSQL away that takes its connection time-out, for which nobody else waits.
        if not self._lock.acquire(timeout=0 if self._unreadable else REFRESH_PATIENCE_SECONDS):
            return self._era if self._unreadable else None
        try:
            if time.monotonic() >= self._until:
                self._refresh()
            return self._era
        finally:
            self._lock.release()

    def now(self) -> str | None:
        """Return what `era` does, without waiting for anyone: None also when nobody has asked for a while."""
        return self._era if time.monotonic() < self._until else None

    def refresh(self) -> None:
        """Ask, however fresh the last answer is; for a thread that keeps it fresh for the others."""
        with self._lock:
            self._refresh()

    def still(self, era: str) -> bool:
        """Tell whether the Redis that answers is that of this era; of another one, the era is asked for anew.

        PostgreSQL is not asked: while it stands still, everybody would wait for that.
        """
        generation = era.partition(".")[0]
        try:
            same = _era(int(generation)) == era
        except RedisError as error:
            self.distrust(error)
            return False
        if not same:
            self._until = 0.0
        return same

    def distrust(self, error: RedisError) -> None:
        """Do without Redis for a moment: each read that waits for a dead one costs its time-out."""
        log.warning("cache_unreachable", error=str(error))
        self._era, self._until = None, time.monotonic() + TRUST_SECONDS

    def _recover(self) -> None:
        """Trust Redis again that was away for a moment, by the generation that PostgreSQL named last."""
        if self._era is not None or self._generation is None:
            return
        try:
            self._era = _era(self._generation)
        except RedisError as error:
            log.warning("cache_unreachable", error=str(error))

    def _refresh(self) -> None:
        until = time.monotonic() + TRUST_SECONDS
        try:
            state = _read_state()
            self._generation = None if state.closed_at is not None else state.generation
            self._unreadable = False
            self._era = None if self._generation is None else _era(self._generation)
        except RedisError as error:
            log.warning("cache_unreachable", error=str(error))
            self._era = None
        except db.Error as error:
            log.warning("cache_state_unreadable", error=str(error))
            self._unreadable = True
            self._recover()
            until = time.monotonic() + TRUST_SECONDS
        self._until = until


_trusted = _Trusted()


_connections_made = 0


def connection_pool() -> ConnectionPool:
    """Return how connections to Redis are made."""
    return _redis().connection_pool


@memoize
def _redis() -> Redis:
    client: Redis = get_redis_connection("default")
    return count_connections(client)


def count_connections(client: Redis) -> Redis:
    """Have each new connection of `client` counted, and return it."""
    client.connection_pool.connection_kwargs["redis_connect_func"] = _on_connect
    return client


def _on_connect(connection: Connection) -> None:
    global _connections_made
    _connections_made += 1
    connection.on_connect()  # type: ignore[no-untyped-call]


def page_key(user_id: int, era: str) -> str:
    """Return where the first page of the user's feed is kept."""
    # The braces keep a user's keys on one node of a Redis cluster.
    return f"feed:{{{user_id}}}:{era}"


def author_key(author_id: int, era: str) -> str:
    """Return where the token of an author is kept, which each of their pulled posts changes."""
    return f"author:{{{author_id}}}:{era}"


AUTHOR_KEYS = b"author:"
