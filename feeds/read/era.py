"""Which Redis counts, since when its pages do, and for how long a process may rely on what it knows
of that.

The row `cache_state` in PostgreSQL says it for everybody: a generation, the identity of one Redis,
and whether the cache is closed. An *era* is a generation on that Redis. It is part of every key, so
what another era has left behind is never read. Several servers may answer as Redis while one takes
over from another; these rules keep readers right:

- Only a master is trusted, and only the one that PostgreSQL names. Every connection asks who
  answers when it is made, and again several times a second; one that leads elsewhere is dropped
  with all the others.
- Who meets another master closes the cache. Once everybody must have noticed, somebody opens it
  again under a new generation, with the Redis that a new connection then leads to.
- No clock is compared with another: a closure is timed from when a process saw it first, which is
  after its commit.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, cast

import structlog
from django import db
from django.db.models.functions import Now
from redis import Connection, ConnectionPool, Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.maint_notifications import MaintNotificationsConfig

from eventbus import cells
from eventbus.cells import Cell
from eventbus.database import current
from feeds.models import CacheState, new_generation

TRUST_SECONDS = 1.0
CLOSED_AT_LEAST_SECONDS = 2 * TRUST_SECONDS
PROBE_EVERY_SECONDS = 2.0
REFRESH_PATIENCE_SECONDS = 0.25
# A process that alone cannot read PostgreSQL hears of a closure by Redis. This bounds what it may
# miss of those that Redis could not be told of.
UNREADABLE_SECONDS = 60.0

log = structlog.get_logger(__name__)


class NoMaster(RedisConnectionError):
    """What answers as Redis is a replica."""


class AnotherRedis(RedisConnectionError):
    """What answers as Redis is a master, but not the one that counts."""


def identity_of(info: Mapping[str, Any]) -> str:
    """Return what is another for each Redis, and for one that was demoted in between.

    Raises `NoMaster`.
    """
    if info.get("role") != "master":
        raise NoMaster("Redis is a replica: REDIS_URL must lead to the master.")
    if "run_id" not in info:
        raise RedisConnectionError("Redis does not tell its run id (INFO server).")
    # A master that becomes a replica and master again keeps its run id, but may have lost what it
    # was told last.
    return f"{info['run_id']}-{info.get('master_replid', '')[:8]}"


def ask_identity(connection: Connection) -> str:
    """Ask on a new connection which Redis it leads to. Raises `RedisError`."""
    info: dict[str, str] = {}
    for section in ("server", "replication"):
        connection.send_command("INFO", section)  # type: ignore[no-untyped-call]
        told = cast(bytes, connection.read_response()).decode("ascii", "replace")
        info |= dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    return identity_of(info)


def connection_pool(cell: Cell) -> ConnectionPool:
    """Return how connections to the Redis of this cell are made."""
    with cells.on(cell):
        return current.redis().connection_pool


class CountedRedis:
    """One Redis, by its identity: each connection of its client is known to lead there."""

    def __init__(self, pool: ConnectionPool, identity: str) -> None:
        self.identity = identity
        self.client = _client(pool, partial(_require, identity))

    def check(self) -> None:
        """Return if that Redis answers and is a master still. Raises `RedisError`."""
        pipeline = self.client.pipeline(transaction=False)
        pipeline.info("server")
        pipeline.info("replication")
        server, replication = pipeline.execute()
        _require_same(self.identity, identity_of(server | replication))

    def check_role(self) -> None:
        """Do so with one short question.

        It is answered after what was done before has been announced to others.
        """
        replication = self.client.info("replication")
        if replication.get("role") != "master":
            raise NoMaster("Redis has become a replica.")


def _client(pool: ConnectionPool, on_connect: Callable[[Connection], None]) -> Redis:
    return Redis(connection_pool=pool_like(pool, redis_connect_func=on_connect))


def pool_like(pool: ConnectionPool, **changes: Any) -> ConnectionPool:
    """Return another pool with the settings of `pool` but for these."""
    # Which the pool does not hand on: no connection need ask for news that one vendor's Redis has.
    silent = {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
    settings = pool.connection_kwargs | silent | changes
    return ConnectionPool(connection_class=pool.connection_class, **settings)


def _require(identity: str, connection: Connection) -> None:
    connection.on_connect()  # type: ignore[no-untyped-call]
    _require_same(identity, ask_identity(connection))


def _require_same(expected: str, found: str) -> None:
    if found != expected:
        raise AnotherRedis(f"Redis is {found}, and {expected} is the one that counts.")


def probe(pool: ConnectionPool) -> str:
    """Return the identity of the Redis that a new connection leads to, if it takes writes.

    Raises `RedisError`.
    """
    found: list[str] = []

    def look(connection: Connection) -> None:
        connection.on_connect()  # type: ignore[no-untyped-call]
        found.append(ask_identity(connection))

    with _client(pool, look) as client:
        client.set("cache:probe", b"", px=1_000)
        client.connection_pool.disconnect()
    return found[0]


@dataclass(frozen=True, slots=True)
class Era:
    """A generation of pages on one Redis."""

    name: str  # a part of each key
    identity: str  # of the Redis
    redis: Redis


def name_of(state: CacheState) -> str:
    """Return the part of each key that changes whenever earlier pages must not be read any more."""
    # The generation alone would do. The release before has the run id in it, and both run side by
    # side for a while.
    return f"{state.generation}.{state.run_id.partition('-')[0]}"


def read_state() -> CacheState:
    """Return the state as committed now."""
    return CacheState.objects.first() or CacheState.objects.get_or_create(id=1)[0]


def mark_closed() -> None:
    """Close the cache with the commit of the current transaction; whoever commits then calls
    `wait_until_noticed`.
    """
    CacheState.objects.update_or_create(id=1, defaults={"closed_at": Now()})
    log.info("cache_closed")


def _close(state: CacheState) -> None:
    """Close the cache unless somebody has done so since `state` was read."""
    is_as_read = CacheState.objects.filter(generation=state.generation, closed_at=None)
    if is_as_read.update(closed_at=Now()):
        log.info("cache_closed")


class Trust:
    """The era of a cell as this process last read it, never relied on for longer than
    `TRUST_SECONDS`.

    With one exception, which is bounded too: see `_without_postgresql`. Whoever calls is on that
    cell, except for what waits for nobody: `now`, `doubt` and `distrust`.
    """

    def __init__(self, pool: ConnectionPool | None = None, cell: Cell | None = None) -> None:
        self._pool = pool
        self.cell = cell or cells.own()
        self._lock = threading.Lock()
        self._closure_lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Know nothing, as a process does that has just begun."""
        self._era: Era | None = None
        self._until = self._doubted_until = 0.0
        self._state: CacheState | None = None  # as last read, at `_read_at`
        self._read_at = 0.0
        self._unreadable = False
        self._redis: CountedRedis | None = None
        self._closure: datetime | None = None
        self._closure_seen_at = self._probe_at = 0.0
        self._complaint = ""

    def era(self) -> Era | None:
        """Return the era whose pages count, or None while the cache is closed or Redis is away."""
        now = time.monotonic()
        if now < self._doubted_until:
            return None
        if now < self._until:
            return self._era
        # One thread asks. With PostgreSQL away that takes its connection time-out, for which nobody
        # else waits.
        if not self._lock.acquire(timeout=0 if self._unreadable else REFRESH_PATIENCE_SECONDS):
            return self._without_postgresql() if self._unreadable else None
        try:
            if time.monotonic() >= self._until:
                self._refresh()
            return self._era
        finally:
            self._lock.release()

    def now(self) -> Era | None:
        """Return what `era` does, without waiting for anyone: None also when nobody has asked for a
        while.
        """
        return self._era if time.monotonic() < self._until else None

    def refresh(self) -> None:
        """Ask, however fresh the last answer is; for a thread that keeps it fresh for the others.

        Never fails.
        """
        with self._lock:
            self._refresh()

    def redis_of(self, state: CacheState) -> CountedRedis:
        """Return the Redis that counts by `state`, where none does the one that answers.

        Raises `RedisError`.
        """
        if not state.run_id:
            found = probe(self.pool)
            CacheState.objects.filter(id=1, run_id="").update(run_id=found)
            state.refresh_from_db()
        redis = self._redis
        if redis is None or redis.identity != state.run_id:
            redis = self._redis = CountedRedis(self.pool, state.run_id)
        return redis

    @property
    def pool(self) -> ConnectionPool:
        return self._pool or connection_pool(self.cell)

    def distrust(self, error: Exception) -> None:
        """Do without Redis for a moment: each read that waits for a dead one costs its time-out."""
        self._drop(error)
        self._era, self._until = None, time.monotonic() + TRUST_SECONDS

    def doubt(self) -> None:
        """Have who would wait for Redis do without it for a moment: it is slow to answer an event
        loop, which goes on with what it keeps.
        """
        self._doubted_until = time.monotonic() + TRUST_SECONDS

    def close_for(self, state: CacheState, error: RedisError) -> None:
        """Close the cache because Redis could not be told of a change, and return when everybody
        must have noticed.
        """
        self._drop(error)
        _close(state)
        # If it was closed and opened since, everybody has noticed by now.
        closed_at = read_state().closed_at
        if closed_at is not None:
            self.wait_until_noticed(closed_at)

    def wait_until_noticed(self, closed_at: datetime) -> None:
        """Wait until no process relies on a cache that was seen closed; once for each closure."""
        time.sleep(max(0.0, self._seen_at(closed_at) + TRUST_SECONDS - time.monotonic()))

    def tell_closed(self) -> None:
        """Tell those who cannot read PostgreSQL that the cache is closed, if Redis can be
        reached.
        """
        state = read_state()
        if state.closed_at is None:
            return
        try:
            redis = self.redis_of(state)
            redis.client.set(_closed_key(state), b"", ex=int(2 * UNREADABLE_SECONDS))
        except RedisError as error:
            self._drop(error)

    def _seen_at(self, closed_at: datetime | None) -> float:
        with self._closure_lock:
            if closed_at != self._closure:
                self._closure, self._closure_seen_at = closed_at, time.monotonic()
                self._probe_at = self._closure_seen_at + CLOSED_AT_LEAST_SECONDS
            return self._closure_seen_at

    def _refresh(self) -> None:
        asked_at = time.monotonic()
        try:
            state = read_state()
            era = self._era_of(state)
        except db.Error as error:
            if not self._unreadable:
                log.warning("cache_state_unreadable", error=str(error))
            self._unreadable = True
            asked_at = time.monotonic()
            self._era = self._without_postgresql()
        else:
            self._state, self._read_at, self._unreadable = state, asked_at, False
            self._era = era
        # To do without Redis is right for as long as one likes. So what is known of one that stands
        # still lasts until the next question to it has ended, for which nobody waits then.
        known_at = time.monotonic() if self._era is None else asked_at
        self._until = known_at + TRUST_SECONDS

    def _era_of(self, state: CacheState) -> Era | None:
        try:
            if state.closed_at is not None:
                self._try_to_open(state)
            if state.closed_at is not None:
                return None
            return self._checked(state)
        except AnotherRedis as error:
            self._drop(error)
            _close(state)
        except RedisError as error:
            self._drop(error)
        return None

    def _checked(self, state: CacheState) -> Era:
        redis = self.redis_of(state)
        redis.check()
        if self._complaint:
            self._complaint = ""
            log.info("cache_trusted_again")
        return Era(name_of(state), redis.identity, redis.client)

    def _try_to_open(self, state: CacheState) -> None:
        """Open a cache that has been closed for long enough, if Redis answers; `state` tells
        then.
        """
        self._seen_at(state.closed_at)
        if time.monotonic() < self._probe_at:
            return
        # Each question to a dead server costs its time-out.
        self._probe_at = time.monotonic() + PROBE_EVERY_SECONDS
        found = probe(self.pool)
        as_seen = CacheState.objects.filter(closed_at=state.closed_at)
        if as_seen.update(generation=new_generation(), run_id=found, closed_at=None):
            log.info("cache_opened")
        state.refresh_from_db()

    def _without_postgresql(self) -> Era | None:
        """Return the era as last read: if PostgreSQL is away for all, nothing can change a feed.

        If it is away for this process alone, Redis knows of a closure, unless it was away for who
        closed. So not for longer than `UNREADABLE_SECONDS`.
        """
        state = self._state
        if state is None or state.closed_at is not None:
            return None
        if time.monotonic() - self._read_at > UNREADABLE_SECONDS:
            return None
        try:
            era = self._checked(state)
            return None if era.redis.exists(_closed_key(state)) else era
        except RedisError as error:
            self._drop(error)
            return None

    def _drop(self, error: Exception) -> None:
        """Have the next question asked on a new connection, and say once what is wrong."""
        dropped, self._redis = self._redis, None
        if dropped is not None:
            dropped.client.connection_pool.disconnect(inuse_connections=False)
        self.pool.disconnect(inuse_connections=False)
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("cache_unreachable", error=str(error))


def _closed_key(state: CacheState) -> str:
    return f"cache:closed:{name_of(state)}"
