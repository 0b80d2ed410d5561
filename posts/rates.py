"""How many writes a user may make in a time (`API_POST_RATE`), counted in Redis in one step.

The time begins with a user's first write in it (a fixed window). Without Redis nothing is counted
and every write goes through: Kafka takes them, and a limit that fails must not fail the writes.
"""

from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from django_redis import get_redis_connection
from redis import RedisError
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from eventbus.breaker import REDIS
from eventbus.exceptions import ServerAway
from posts.principal import principal

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

# Redis runs a script as one step: of writes at the same time each gets a count of its own.
_TAKE = """
local count = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    left = tonumber(ARGV[1])
end
return {count, left}
"""


class Limit(NamedTuple):
    """So many writes in so many seconds."""

    writes: int
    seconds: int


class Standing(NamedTuple):
    """Where a user stands after a write: the limit, the number of this write, the milliseconds
    until it starts anew.
    """

    limit: Limit
    number: int
    left_ms: int

    @property
    def allowed(self) -> bool:
        return self.number <= self.limit.writes

    @property
    def seconds_left(self) -> int:
        return -(-self.left_ms // 1_000)

    def headers(self) -> dict[str, str]:
        """Return the RateLimit fields of an answer (draft-ietf-httpapi-ratelimit-headers-10)."""
        remaining = max(0, self.limit.writes - self.number)
        return {
            "RateLimit-Policy": f'"writes";q={self.limit.writes};w={self.limit.seconds}',
            "RateLimit": f'"writes";r={remaining};t={self.seconds_left}',
        }


def limit() -> Limit | None:
    """Return the limit that is set, if one is."""
    return _parse(settings.API_POST_RATE)


def command(user_id: int, limit: Limit) -> tuple[str | int, ...]:
    """Return the command to Redis that counts one write of the user; `standing` reads its
    answer.
    """
    return ("EVAL", _TAKE, 1, f"rate:writes:{user_id}", limit.seconds * 1_000)


def standing(limit: Limit, answer: Any) -> Standing:
    """Return what Redis has answered to `command`."""
    number, left_ms = answer
    return Standing(limit, int(number), int(left_ms))


def take(user_id: int) -> Standing | None:
    """Count a write of the user; None where nothing is counted."""
    found = limit()
    if found is None:
        return None
    try:
        trial = REDIS.enter()
    except ServerAway:
        return None
    redis = get_redis_connection("default")
    try:
        answer = redis.execute_command(*command(user_id, found))
    except RedisError as error:
        REDIS.failed(error, trial)
        # Such as a master that has become a replica: a new connection leads to its successor.
        redis.connection_pool.disconnect(inuse_connections=False)
        return None
    REDIS.succeeded()
    return standing(found, answer)


class WriteRate(BaseThrottle):
    """Refuses writes beyond the limit, of whatever kind."""

    def __init__(self) -> None:
        self._standing: Standing | None = None

    def allow_request(self, request: Request, view: object) -> bool:
        if request.method in SAFE_METHODS:
            return True
        self._standing = take(principal(request).user_id)
        request._request.rate_standing = self._standing  # type: ignore[attr-defined]
        return self._standing is None or self._standing.allowed

    def wait(self) -> float | None:
        return self._standing.left_ms / 1_000 if self._standing else None


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
