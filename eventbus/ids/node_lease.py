"""Leases of snowflake node ids, so that two processes never mint the same id.

A lease is a node and a time range, by PostgreSQL's clock. The row of a node keeps the end of its
last range, and a new range always starts after it: ranges of one node cannot overlap, whatever any
clock says.

One thread of the process, the keeper, talks to PostgreSQL: it leases, renews and gives back. All
others mint from what it holds, and wait for it a bounded time at most. So PostgreSQL may hang or be
away without holding anyone up.
"""

import atexit
import os
import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from django import db
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections

from eventbus import cells, identity
from eventbus.cellmap import refuse
from eventbus.cells import Cell
from eventbus.database.current import asking, atomic, connection
from eventbus.database.sql import execute, fetch
from eventbus.exceptions import IdsUnavailable
from eventbus.ids import clock
from eventbus.ids.snowflake import NODES, Generator, milliseconds_of
from eventbus.models import SnowflakeNode

# A range reaches ten times as far ahead as its lease has lasted. So a process that crashes again
# and again blocks its node for seconds, and one that has served for a minute can do without
# PostgreSQL for at least seven.
FIRST_LEASE_MS = 10_000
LEASE_MS = 600_000
AHEAD_FACTOR = 10
# Renewed when a quarter of what is ahead has passed; after a failure as soon as this.
RENEWALS_A_LEASE = 4
RETRY_SECONDS = 2.0
# By so much later may a process notice that the map names another cell for the ids, and may the
# clocks of two cells differ.
TAKEOVER_MARGIN_MS = 120_000
# For so long after the last lease of this cell has run out no other has given one.
GRACE_MS = 30_000
# So long another cell is asked for its leases.
OTHER_CELL_ANSWER_SECONDS = 2.0
# The longest that `next_id` waits for the keeper.
WAIT_SECONDS = 2.0

# Each promotion of a standby, and each recovery to a point in time, counts the timeline up.
_TIMELINE = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"
# Locking only free rows lets many processes start at once without waiting.
_LEASE = """
UPDATE snowflake_nodes SET owner = %(owner)s, leased_until_ms = %(until)s
WHERE node_id = (
    SELECT node_id FROM snowflake_nodes WHERE leased_until_ms < %(now)s
    ORDER BY leased_until_ms * %(order)s, node_id * %(order)s LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING node_id
"""
_RENEW = """
UPDATE snowflake_nodes SET leased_until_ms = greatest(leased_until_ms, %(until)s)
WHERE node_id = %(node)s AND owner = %(owner)s
RETURNING leased_until_ms
"""
_RELEASE = "UPDATE snowflake_nodes SET leased_until_ms = %s, owner = NULL WHERE node_id = %s AND owner = %s"
_NEWEST_EVENT = "SELECT max(event_id) FROM processed_events"
_LAST_LEASE = "SELECT coalesce(max(leased_until_ms), 0) FROM snowflake_nodes"
_KEEP_ALL = (
    "UPDATE snowflake_nodes SET owner = NULL, leased_until_ms = greatest(leased_until_ms, %s)"
)
_FREE_AT = "SELECT min(leased_until_ms) FROM snowflake_nodes"

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """Holds a lease from its start until `stop`; a thread of its own gets it, renews it and gives
    it back.
    """

    def __init__(self) -> None:
        self.owner = uuid.uuid4()
        self.generator: Generator | None = None
        self._leased_at_ms = 0
        self._failure = ""  # of the last turn
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._releasing = False
        # Guards the number of turns alone, never anything that waits for PostgreSQL.
        self._turned = threading.Condition()
        self._turns = 0
        self._thread = threading.Thread(target=self._run, name="snowflake-lease", daemon=True)
        self._thread.start()

    def mint(self, count: int) -> range:
        """Return `count` consecutive new ids, without waiting.

        Raises `IdsUnavailable`, and has the keeper see to it.
        """
        try:
            return self._leased().next_run(count)
        except IdsUnavailable as error:
            self._see_to(error)
            raise

    def _leased(self) -> Generator:
        if self.generator is None:
            raise IdsUnavailable("This process has no lease to mint ids by yet.")
        return self.generator

    def _see_to(self, error: IdsUnavailable) -> None:
        self.renew_soon()
        if self._failure:
            raise IdsUnavailable(self._failure) from error

    def trouble(self) -> str:
        """Return why no id can be had at the moment, or nothing, and have the keeper see to it: a
        process that says it is not ready gets no request that would. Never waits.
        """
        trouble = self._trouble()
        if trouble:
            self.renew_soon()
        return trouble

    def _trouble(self) -> str:
        generator = self.generator
        if generator is None:
            return self._failure or "has given no lease to mint ids by yet"
        try:
            has_run_out = clock.exact_now_ms() > generator.until_ms
        except IdsUnavailable as error:
            return self._failure or str(error)
        if has_run_out:
            return self._failure or "the lease to mint ids by has run out"
        return ""

    def next_id(self) -> int:
        """Return a new id, as `next_run` does several."""
        return self.next_run(1)[0]

    def next_run(self, count: int) -> range:
        """Return `count` consecutive new ids; wait up to `WAIT_SECONDS` for a lease if there is
        none.

        Raises `IdsUnavailable`.
        """
        turns = self._turns
        try:
            return self.mint(count)
        except IdsUnavailable:
            if self._failure:  # the keeper tries again before long, and so may the caller
                raise
        if not self._has_turned(turns):
            raise IdsUnavailable(
                f"PostgreSQL has given no lease to mint ids by within {WAIT_SECONDS:.0f} s."
            )
        return self.mint(count)

    def renew_soon(self) -> None:
        """Have the keeper take its turn now, unless its last one failed: then it keeps to its
        pauses.
        """
        self._wake.set()

    def stop(self, *, release: bool) -> None:
        """End the keeper, and with `release` give the node back; does not wait longer for it than
        for an id.
        """
        self._releasing = release
        self._stopping.set()
        self._wake.set()
        self._thread.join(WAIT_SECONDS)

    def _has_turned(self, since: int) -> bool:
        with self._turned:
            return self._turned.wait_for(lambda: self._turns > since, WAIT_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            # Before each renewal: by a map in which ids come from elsewhere, no lease is renewed here.
            cells.refresh()
            with cells.on(cells.of_ids()):
                pause = self._turn()
            if self._failure:
                # Everybody who is refused an id asks for a turn; PostgreSQL is not asked as often.
                self._stopping.wait(pause)
            else:
                self._wake.wait(pause)
            self._wake.clear()
        if self._releasing:
            with cells.on(cells.of_ids()):
                self._release()

    def _turn(self) -> float:
        """Lease or renew once; return the seconds until the next turn."""
        failure = ""
        try:
            close_old_connections()
            self._renew_or_lease()
        except (IdsUnavailable, ImproperlyConfigured) as error:
            failure = str(error)
        except db.Error as error:
            failure = f"PostgreSQL gives no lease to mint ids by: {_first_line(error)}"
        except Exception:
            log.exception("snowflake_lease_failed")
            failure = "The lease to mint ids by could not be renewed."
        finally:
            connection.close()
        if failure and failure != self._failure:
            log.warning("snowflake_lease_not_renewed", error=failure)
        with self._turned:
            self._failure = failure
            self._turns += 1
            self._turned.notify_all()
        if failure:
            return RETRY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
        return self._ahead_ms() / 1_000 / RENEWALS_A_LEASE

    def _renew_or_lease(self) -> None:
        now_ms = clock.read()
        clock.exact_now_ms()  # a lease is of no use to who does not know the time
        generator = self.generator
        if generator is not None and self._renew(generator, now_ms):
            return
        start_ms = now_ms
        if generator is not None and _is_near(generator, now_ms):
            start_ms = max(now_ms, generator.last_ms + 1)
        self.generator = _lease_free_node(self.owner, now_ms, start_ms)
        self._leased_at_ms = now_ms

    def _renew(self, generator: Generator, now_ms: int) -> bool:
        """Extend the range; False if there is none to extend.

        That is so when it was over and the node given away; when PostgreSQL went back to before
        this lease; and when its clock did, by so much that ids would be from the future for long.
        """
        if not _is_near(generator, now_ms):
            return False
        # With a clock that stepped back, ids go on from the last one.
        until_ms = max(now_ms, generator.last_ms) + self._ahead_ms()
        values = {"node": generator.node_id, "owner": self.owner, "until": until_ms}
        with _durably():
            renewed = fetch(_RENEW, values)
        if renewed:
            [(generator.until_ms,)] = renewed
        return bool(renewed)

    def _ahead_ms(self) -> int:
        lasted_ms = clock.now_ms() - self._leased_at_ms
        return min(LEASE_MS, max(FIRST_LEASE_MS, AHEAD_FACTOR * lasted_ms))

    def _release(self) -> None:
        """Give the node back; its next holder starts after the last id minted here."""
        if self.generator is None:
            return
        last_ms = self.generator.end()
        try:
            execute(_RELEASE, [last_ms, self.generator.node_id, self.owner])
        except db.Error as error:
            log.warning("snowflake_lease_not_released", error=_first_line(error))
        finally:
            connection.close()


@contextmanager
def _durably() -> Iterator[None]:
    """Run a transaction that outlasts a crash of PostgreSQL once it has committed, however the
    server is set.
    """
    with atomic():
        execute("SET LOCAL synchronous_commit = on")
        yield


def prepare(now_ms: int) -> None:
    """Have the nodes there, and none of them be free that may not be leased yet: to be called before
    one is looked for.

    Raises `ImproperlyConfigured` on a database that is not that of the cell we are on: its leases
    have nothing to do with those of ours.
    """
    if sentence := identity.mistaken(cells.here()):
        refuse(sentence)
    if not SnowflakeNode.objects.exists():
        nodes = [SnowflakeNode(node_id=number) for number in range(NODES)]
        SnowflakeNode.objects.bulk_create(nodes, ignore_conflicts=True)
    # Also where one cell is all there is: others may have been merged into it.
    if cells.of_ids().name:
        _outlast_other_cells(now_ms)


def _lease_free_node(owner: uuid.UUID, now_ms: int, start_ms: int) -> Generator:
    """Lease a node that is free now, for ids from `start_ms` on."""
    prepare(now_ms)
    until_ms = start_ms + FIRST_LEASE_MS
    with _durably():
        leased = fetch(
            _LEASE, {"owner": owner, "now": now_ms, "until": until_ms, "order": _order()}
        )
    if not leased:
        raise IdsUnavailable(_all_leased(now_ms))
    [(node_id,)] = leased
    return Generator(node_id, start_ms=start_ms, until_ms=until_ms, clock=clock.exact_now_ms)


def _outlast_other_cells(now_ms: int) -> None:
    """Have no node be free here while there may be leases of another cell, by which processes mint
    on.

    Each cell does so before its first lease. So while there is one of this cell there is none of
    another, and nobody is asked; when there is none, as when this cell takes over, all are.
    """
    [(last_lease_ms,)] = fetch(_LAST_LEASE)
    if now_ms <= last_lease_ms + GRACE_MS:
        return
    until_ms = _end_of_other_leases(now_ms, last_lease_ms) + TAKEOVER_MARGIN_MS
    if until_ms > now_ms:
        log.warning("ids_come_from_here_now", free_in_seconds=(until_ms - now_ms) // 1_000)
        execute(_KEEP_ALL, [until_ms])


def _end_of_other_leases(now_ms: int, last_lease_ms: int) -> int:
    """Return until when there may be leases of other cells; nothing is minted below it either,
    whatever the clocks are.
    """
    [(newest_id,)] = fetch(_NEWEST_EVENT)
    newest_ms = milliseconds_of(newest_id or 0)
    # There are none of this cell yet, or there are ids that were minted after all of them.
    others_have_given = newest_ms > last_lease_ms
    ends = [newest_ms if others_have_given else 0]
    for cell in cells.every().values():
        if cell == cells.here():
            continue
        end_ms = _last_lease_in(cell)
        if end_ms is not None:
            ends.append(end_ms)
        elif others_have_given:
            ends.append(now_ms + LEASE_MS)
    return max(ends)


def _last_lease_in(cell: Cell) -> int | None:
    """Return until when the last lease of a cell is, 0 if it has never given one; None if it does
    not answer.
    """
    try:
        with asking(cell, OTHER_CELL_ANSWER_SECONDS):
            [(last_lease_ms,)] = fetch(_LAST_LEASE)
    except db.Error as error:
        log.warning("leases_of_cell_not_known", cell=cell.name, error=_first_line(error))
        return None
    return int(last_lease_ms)


def _is_near(generator: Generator, now_ms: int) -> bool:
    """Tell whether the last id is not further ahead of the time than a clock that is being
    corrected explains.
    """
    return generator.last_ms <= now_ms + LEASE_MS


def _order() -> int:
    """Return 1 to have the nodes that were free for longest given away first, -1 for last.

    A standby that takes over may not know the latest leases, whose holders mint on. Those were the
    nodes at one end of this order, so on the next timeline PostgreSQL gives away those at the other
    end.
    """
    [(timeline,)] = fetch(_TIMELINE)
    return 1 if timeline % 2 else -1


def _all_leased(now_ms: int) -> str:
    [(free_at_ms,)] = fetch(_FREE_AT)
    seconds = (free_at_ms - now_ms) // 1_000 + 1
    return f"All {NODES} snowflake nodes are leased; the next one is free in {seconds} s."


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


_keeper: LeaseKeeper | None = None
_keeper_lock = threading.Lock()  # nobody waits for PostgreSQL under it


def keep() -> LeaseKeeper:
    """Start this process's keeper, unless it has one: a lease is there as soon as PostgreSQL can be
    reached.

    Returns at once. A forked child has none: its own is made at the first call there.
    """
    global _keeper
    keeper = _keeper
    if keeper is not None:
        return keeper
    with _keeper_lock:
        if _keeper is None:
            _keeper = LeaseKeeper()
        return _keeper


def next_id() -> int:
    """Return a new snowflake id; wait up to `WAIT_SECONDS` for this process's lease.

    Raises `IdsUnavailable`.
    """
    return keep().next_id()


def next_run(count: int) -> range:
    """Return `count` consecutive new ids, of one millisecond, as `next_id` does one."""
    return keep().next_run(count)


def two_ids_without_waiting() -> tuple[int, int]:
    """Return two new ids, the lower one first, from the lease that this process holds.

    No I/O, and no lock that is held during any. Raises `IdsUnavailable` when there is no lease, or
    it has run out; the keeper then sees to it.
    """
    first, second = keep().mint(2)
    return first, second


def release() -> None:
    """Give this process's node back, if it holds one; waits no longer than for an id."""
    _end(release=True)


def forget() -> None:
    """Take the lease from this process without giving its node back; the next id leases anew."""
    _end(release=False)


def _end(*, release: bool) -> None:
    global _keeper
    with _keeper_lock:
        keeper, _keeper = _keeper, None
    if keeper is not None:
        keeper.stop(release=release)


def _forget_after_fork() -> None:
    global _keeper, _keeper_lock
    _keeper, _keeper_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(release)
