"""The cached first page of each feed in Redis, and how it never shows what an invalidation has
outdated.

The API's event loop also keeps pages in the process itself (`feeds.read.near_cache`). Four rules
keep them all fresh:

1. **Lease.** A reader that misses puts a lease under the page's key and may replace only that very
   lease with its page. An invalidation deletes the key, lease or page: a reader that loaded before
   it can store nothing after it.
2. **Watching.** A post that is pulled invalidates no page, of which there may be millions. Instead
   a page names the authors it may have to pull from, sealed with a token of each; a new post gives
   its author a new token, and a page whose seal is broken is a miss.
3. **Closing.** A worker that cannot reach Redis to invalidate closes the cache in PostgreSQL
   (`cache_state`) and waits `TRUST_SECONDS`, the time for which a process may rely on what it last
   read there. From then on every process reads from PostgreSQL alone. Once Redis answers again,
   someone opens the cache with a new generation; pages of the old one are never read again,
   whatever Redis kept.
4. **One Redis.** PostgreSQL names the Redis that counts, and nobody reads or invalidates on another
   (`feeds.read.era`).
"""

import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from django.conf import settings
from redis import Redis, RedisError

from feeds import announcements
from feeds.announcements import Change
from feeds.read.era import (
    TRUST_SECONDS,
    CountedRedis,
    Era,
    Trust,
    mark_closed,
    name_of,
    read_state,
)
from feeds.read.page import (
    LEASE,
    CachedPage,
    KeptValue,
    author_key,
    page_key,
    read_value,
    sealed,
    to_value,
    watched_by,
)

LEASE_MS = 5_000
KEYS_A_COMMAND = 1_000
MAX_WATCHED = 1_000

# With what the value expires: 'EX' seconds, 'PX' milliseconds, or 'KEEPTTL'.
_REPLACE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], unpack(ARGV, 3))
    return 1
end
return 0
"""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the cache answered: a page (`hit`), the right to store one (`miss`), or neither
    (`bypass`).
    """

    result: str
    page: CachedPage | None = None
    key: str = ""
    replaces: bytes = b""  # what a page to be stored must find in its place
    era: Era | None = None
    nonce: bytes = b""
    seal: bytes = b"\n"  # and the authors it seals


BYPASS = Lookup("bypass")


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache holds for a user's first page, told without taking a lease."""

    state: str
    is_hit: bool = False
    seconds_left: int = 0
    page_bytes: int = 0
    watched: Sequence[int] = ()


class Pages:
    """First pages in Redis, as one process may use them."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust

    def look_up(self, user_id: int) -> Lookup:
        """Return the cached first page of the user's feed, or a lease to `store` it.

        Redis down: a bypass.
        """
        era = self.trust.era()
        if era is None:
            return BYPASS
        try:
            return _look_up(user_id, era)
        except RedisError as error:
            self.trust.distrust(error)
            return BYPASS

    def watch(self, lookup: Lookup, authors: Sequence[int]) -> Lookup:
        """Return `lookup` for a page that watches `authors`; to be called before what goes into the
        page is read.
        """
        if not (authors and lookup.replaces and lookup.era):
            return lookup
        if len(authors) > MAX_WATCHED:
            return BYPASS
        try:
            tokens = _tokens(authors, lookup.era)
        except RedisError as error:
            self.trust.distrust(error)
            return BYPASS
        return replace(lookup, seal=sealed(authors, tokens))

    def store(self, lookup: Lookup, page: CachedPage) -> bool:
        """Store the page in place of what `lookup` found; False if an invalidation came between, or
        Redis is away.
        """
        if not (lookup.replaces and lookup.era):
            return False
        value = to_value(KeptValue(lookup.nonce, lookup.seal, page))
        # A page that is added to lives no longer for it: it watches only those who were pulled when
        # it was made.
        expiry = ["KEEPTTL"] if lookup.page else ["EX", settings.FEED_CACHE_TTL]
        try:
            return _replace(lookup.era.redis, lookup.key, lookup.replaces, value, *expiry)
        except RedisError as error:
            self.trust.distrust(error)
            return False

    def inspect(self, user_id: int) -> Kept:
        """Tell what the next read of the user's first page will find. Redis down: that."""
        era = self.trust.era()
        if era is None:
            return Kept("closed, or Redis is away: reads come from PostgreSQL")
        try:
            return _inspect(user_id, era)
        except RedisError as error:
            self.trust.distrust(error)
            return Kept(f"Redis is away ({type(error).__name__}): reads come from PostgreSQL")

    def invalidate(
        self,
        user_ids: Collection[int],
        authors: Collection[int] = (),
        changes: Iterable[Change] | None = None,
    ) -> None:
        """Make void the pages and leases of these users, and all pages that watch these authors.

        Live streams are told of `changes`; None: that there are some. Call it after the commit of
        what changes their feeds. Returns only when no reader can see an
        outdated page any more. Raises `DatabaseError`.
        """
        # Read after the commit: a reader that stores in a later era than this one has loaded after
        # it too.
        state = read_state()
        if state.closed_at is not None:
            self.trust.wait_until_noticed(state.closed_at)
            return
        try:
            redis = self.trust.redis_of(state)
            _void(list(user_ids), authors, changes, redis, name_of(state))
        except RedisError as error:
            self.trust.close_for(state, error)

    def close(self) -> None:
        """Make every page cached so far void, for every process, and return when each must have
        noticed.

        For changes to more feeds than are worth naming. The cache opens again by itself after a
        moment.
        """
        mark_closed()
        self.wait_until_noticed()

    def wait_until_noticed(self) -> None:
        """Wait until no process relies on a cache that was closed just now."""
        self.trust.tell_closed()
        time.sleep(TRUST_SECONDS)


def _replace(redis: Redis, key: str, old: bytes, new: bytes, *expiry: str | int) -> bool:
    return bool(redis.eval(_REPLACE, 1, key, old, new, *expiry))


def _look_up(user_id: int, era: Era) -> Lookup:
    key, nonce = page_key(user_id, era.name), uuid.uuid4().hex.encode()
    lease = LEASE + nonce
    # One round trip: the value, or where there was none our lease in its place.
    value = cast(bytes | None, era.redis.set(key, lease, nx=True, px=LEASE_MS, get=True))
    if value is None:
        return Lookup("miss", key=key, era=era, replaces=lease, nonce=nonce)
    if value.startswith(LEASE):
        return Lookup("miss")
    kept = read_value(value)
    if kept is None or not _is_whole(kept.seal, era):
        taken = _replace(era.redis, key, value, lease, "PX", LEASE_MS)
        return Lookup("miss", key=key, era=era, replaces=lease if taken else b"", nonce=nonce)
    return Lookup("hit", kept.page, key, replaces=value, era=era, nonce=kept.nonce, seal=kept.seal)


def _inspect(user_id: int, era: Era) -> Kept:
    key = page_key(user_id, era.name)
    value = cast(bytes | None, era.redis.get(key))
    if value is None:
        return Kept("miss: nothing is kept")
    seconds_left = max(0, era.redis.ttl(key))
    if value.startswith(LEASE):
        return Kept("miss: a reader is about to store the page", seconds_left=seconds_left)
    kept = read_value(value)
    if kept is None:
        return Kept("miss: the page is of another release", seconds_left=seconds_left)
    whole = _is_whole(kept.seal, era)
    state = "hit" if whole else "miss: an author that the page watches has posted since"
    return Kept(state, whole, seconds_left, len(kept.page.body), watched_by(kept.seal))


def _is_whole(seal: bytes, era: Era) -> bool:
    authors = watched_by(seal)
    if not authors:
        return True
    tokens = cast(
        list[bytes | None], era.redis.mget([author_key(author, era.name) for author in authors])
    )
    return None not in tokens and sealed(authors, tokens) == seal


def _tokens(authors: Sequence[int], era: Era) -> list[bytes | None]:
    """Return the token of each author, a new one where there is none."""
    keys = [author_key(author, era.name) for author in authors]
    tokens = cast(list[bytes | None], era.redis.mget(keys))
    missing = [key for key, token in zip(keys, tokens, strict=True) if token is None]
    if not missing:
        return tokens
    pipeline = era.redis.pipeline(transaction=False)
    for key in missing:
        pipeline.set(key, uuid.uuid4().bytes, nx=True, ex=_token_ttl())
    pipeline.execute()
    return cast(list[bytes | None], era.redis.mget(keys))


def _token_ttl() -> int:
    # A page that outlives the token of an author it watches is a miss, no more.
    return 2 * cast(int, settings.FEED_CACHE_TTL)


def _void(
    user_ids: Sequence[int],
    authors: Collection[int],
    changes: Iterable[Change] | None,
    redis: CountedRedis,
    era: str,
) -> None:
    pipeline = redis.client.pipeline(transaction=False)
    for author in authors:
        pipeline.set(author_key(author, era), uuid.uuid4().bytes, ex=_token_ttl())
    for start in range(0, len(user_ids), KEYS_A_COMMAND):
        pipeline.unlink(
            *[page_key(user_id, era) for user_id in user_ids[start : start + KEYS_A_COMMAND]]
        )
    if changes is None:
        changes = [Change(user_ids), *(Change(pulled_from=author) for author in authors)]
    announcements.announce(pipeline, era, changes)
    pipeline.execute()
    # Redis answers us before it announces the change to others, but announces it before it answers
    # another question. And a replica that may be written to has taken all this in silence.
    redis.check_role()
