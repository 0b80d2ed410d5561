"""How many writes a user may make in a time (`API_POST_RATE`), counted in Redis in one step.

The time begins with a user's first write in it (a fixed window). A request that makes several
writes counts as so many, and is let through whole or not at all: one that is not leaves what is
left to smaller ones. Without Redis nothing is counted and every write goes through: Kafka takes
them, and a limit that fails must not fail the writes.
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
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

# Redis runs a script as one step: of requests at the same time only those pass that fit together.
_TAKE = """
local milliseconds, writes, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local taken = tonumber(redis.call('GET', KEYS[1]) or 0)
local left = redis.call('PTTL', KEYS[1])
local allowed = 0
if taken + writes <= most then
    taken = redis.call('INCRBY', KEYS[1], writes)
    allowed = 1
end
if left < 0 then
    redis.call('PEXPIRE', KEYS[1], milliseconds)
    left = milliseconds
end
return {allowed, taken, left}
"""


class Limit(NamedTuple):
    """So many writes in so many seconds."""

    writes: int
    seconds: int


class Standing(NamedTuple):
    """Where a user stands after a request to write: the limit, whether it was allowed, how many
    writes are taken by now, the milliseconds until it starts anew.
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
        remaining = max(0, self.limit.writes - self.taken)
        return {
            "RateLimit-Policy": f'"writes";q={self.limit.writes};w={self.limit.seconds}',
            "RateLimit": f'"writes";r={remaining};t={self.seconds_left}',
        }


def limit() -> Limit | None:
    """Return the limit that is set, if one is."""
    return _parse(settings.API_POST_RATE)


def command(user_id: int, limit: Limit, writes: int = 1) -> tuple[str | int, ...]:
    """Return the command to Redis that counts so many writes of the user; `standing` reads its
    answer.
    """
    key = f"rate:writes:{user_id}"
    return ("EVAL", _TAKE, 1, key, limit.seconds * 1_000, writes, limit.writes)


def standing(limit: Limit, answer: Any) -> Standing:
    """Return what Redis has answered to `command`."""
    allowed, taken, left_ms = map(int, answer)
    return Standing(limit, bool(allowed), taken, left_ms)


def take(user_id: int, writes: int = 1) -> Standing | None:
    """Count so many writes of the user, all or none; None where nothing is counted."""
    found = limit()
    if found is None:
        return None
    server = breaker.of(cells.here()).redis
    try:
        trial = server.enter()
    except ServerAway:
        return None
    redis = current.redis()
    try:
        answer = redis.execute_command(*command(user_id, found, writes))  # type: ignore[no-untyped-call]
    except RedisError as error:
        server.failed(error, trial)
        # Such as a master that has become a replica: a new connection leads to its successor.
        redis.connection_pool.disconnect(inuse_connections=False)
        return None
    server.succeeded()
    return standing(found, answer)


class WriteRate(BaseThrottle):
    """Refuses writes beyond the limit, of whatever kind."""

    def __init__(self) -> None:
        self._standing: Standing | None = None

    def allow_request(self, request: Request, view: object) -> bool:
        if request.method in SAFE_METHODS:
            return True
        self._standing = _take_for(request, 1)
        return self._standing is None or self._standing.allowed

    def wait(self) -> float | None:
        return self._standing.left_ms / 1_000 if self._standing else None


def charge(request: Request, writes: int) -> None:
    """Count a request that makes so many writes, for a view that knows only by its body how many.

    Raises `Throttled` when they do not fit into what is left of the limit, and `Unprocessable` when
    they never will.
    """
    most = limit()
    if most is not None and writes > most.writes:
        raise Unprocessable(
            f"These are {writes} writes, and no user may make more than {most.writes} at a time.",
            code="exceeds_write_rate",
        )
    found = _take_for(request, writes)
    if found is not None and not found.allowed:
        raise Throttled(found.left_ms / 1_000)


def _take_for(request: Request, writes: int) -> Standing | None:
    """Count the writes of the request, and keep for its answer where that leaves the user."""
    found = take(principal(request).user_id, writes)
    request._request.rate_standing = found  # type: ignore[attr-defined]
    return found


def headers_of(request: Request) -> dict[str, str]:
    """Return the RateLimit fields for the answer to this request."""
    found: Standing | None = getattr(request._request, "rate_standing", None)
    return found.headers() if found else {}


@cache
def _parse(rate: str) -> Limit | None:
    if not rate:
        return None
    number, _, unit = rate.partition("/")
    return Limit(int(number), _SECONDS[unit[0]])
