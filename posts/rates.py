"""How many writes a user may make in a time (`API_POST_RATE`), and how many posts they may read by
their ids (`API_LOOKUP_RATE`): each counted in Redis, in one step.

The time begins with a user's first in it (a fixed window). A request of several counts as so many,
and is let through whole or not at all: one that is not leaves what is left to smaller ones. Without
Redis nothing is counted and every request goes through: Kafka and PostgreSQL take them, and a limit
that fails must not fail what it limits.
"""

from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from redis import RedisError
from rest_framework.exceptions import Throttled
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from eventbus import breaker, cells
from eventbus.database import current
from eventbus.exceptions import ServerAway
from posts.errors import Unprocessable
from posts.principal import principal

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Where a process has an event loop, that tries a Redis that is away, more often than this.
TRIED_WITHIN_SECONDS = 2.0
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

# Redis runs a script as one step: of requests at the same time only those pass that fit together.
_TAKE = """
local milliseconds, count, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local taken = tonumber(redis.call('GET', KEYS[1]) or 0)
local left = redis.call('PTTL', KEYS[1])
local allowed = 0
if taken + count <= most then
    taken = redis.call('INCRBY', KEYS[1], count)
    allowed = 1
end
if left < 0 then
    redis.call('PEXPIRE', KEYS[1], milliseconds)
    left = milliseconds
end
return {allowed, taken, left}
"""


class Limit(NamedTuple):
    """So many of what it counts in so many seconds."""

    counts: str
    most: int
    seconds: int


class Standing(NamedTuple):
    """Where a user stands after a request: the limit, whether it was allowed, how many are taken by
    now, the milliseconds until it starts anew.
    """

    limit: Limit
    allowed: bool
    taken: int
    left_ms: int

    @property
    def seconds_left(self) -> int:
        return -(-self.left_ms // 1_000)

    def headers(self) -> dict[str, str]:
        """Return the RateLimit fields of an answer (draft-ietf-httpapi-ratelimit-headers-10)."""
        name, most, seconds = self.limit
        remaining = max(0, most - self.taken)
        return {
            "RateLimit-Policy": f'"{name}";q={most};w={seconds}',
            "RateLimit": f'"{name}";r={remaining};t={self.seconds_left}',
        }


def write_limit() -> Limit | None:
    """Return the limit of writes, if one is set."""
    return _parse("writes", settings.API_POST_RATE)


def lookup_limit() -> Limit | None:
    """Return the limit of posts that are read by their ids, if one is set."""
    return _parse("lookups", settings.API_LOOKUP_RATE)


def command(user_id: int, limit: Limit, count: int = 1) -> tuple[str | int, ...]:
    """Return the command to Redis that counts so many of the user's; `standing` reads its answer."""
    key = f"rate:{limit.counts}:{user_id}"
    return ("EVAL", _TAKE, 1, key, limit.seconds * 1_000, count, limit.most)


def standing(limit: Limit, answer: Any) -> Standing:
    """Return what Redis has answered to `command`."""
    allowed, taken, left_ms = map(int, answer)
    return Standing(limit, bool(allowed), taken, left_ms)


def take(user_id: int, limit: Limit | None, count: int = 1) -> Standing | None:
    """Count so many of the user's, all or none; None where nothing is counted."""
    if limit is None:
        return None
    server = breaker.of(cells.here()).redis
    if server.is_open and server.failed_within(TRIED_WITHIN_SECONDS):
        return None
    try:
        trial = server.enter()
    except ServerAway:
        return None
    redis = current.redis()
    try:
        answer = redis.execute_command(*command(user_id, limit, count))  # type: ignore[no-untyped-call]
    except RedisError as error:
        server.failed(error, trial)
        # Such as a master that has become a replica: a new connection leads to its successor.
        redis.connection_pool.disconnect(inuse_connections=False)
        return None
    server.succeeded()
    return standing(limit, answer)


class WriteRate(BaseThrottle):
    """Refuses writes beyond the limit, of whatever kind."""

    def __init__(self) -> None:
        self._standing: Standing | None = None

    def allow_request(self, request: Request, view: object) -> bool:
        if request.method in SAFE_METHODS:
            return True
        self._standing = _take_for(request, write_limit(), 1)
        return self._standing is None or self._standing.allowed

    def wait(self) -> float | None:
        return self._standing.left_ms / 1_000 if self._standing else None


def charge_writes(request: Request, writes: int) -> None:
    """Count a request that makes so many writes, for a view that knows only by its body how many.

    Raises `Throttled` when they do not fit into what is left of the limit, and `Unprocessable` when
    they never will.
    """
    limit = write_limit()
    if limit is not None and writes > limit.most:
        raise Unprocessable(
            f"These are {writes} writes, and no user may make more than {limit.most} at a time.",
            code="exceeds_write_rate",
        )
    _charge(request, limit, writes)


def charge_lookups(request: Request, posts: int) -> None:
    """Count a request that reads so many posts by their ids.

    Raises `Throttled` when they do not fit into what is left of the limit; it always has room for
    as many as one request may name.
    """
    _charge(request, lookup_limit(), posts)


def _charge(request: Request, limit: Limit | None, count: int) -> None:
    found = _take_for(request, limit, count)
    if found is not None and not found.allowed:
        raise Throttled(found.left_ms / 1_000)


def _take_for(request: Request, limit: Limit | None, count: int) -> Standing | None:
    """Count what the request does, and keep for its answer where that leaves the user."""
    found = take(principal(request).user_id, limit, count)
    request._request.rate_standing = found  # type: ignore[attr-defined]
    return found


def headers_of(request: Request) -> dict[str, str]:
    """Return the RateLimit fields for the answer to this request."""
    found: Standing | None = getattr(request._request, "rate_standing", None)
    return found.headers() if found else {}


@cache
def _parse(counts: str, rate: str) -> Limit | None:
    if not rate:
        return None
    number, _, unit = rate.partition("/")
    return Limit(counts, int(number), _SECONDS[unit[0]])
