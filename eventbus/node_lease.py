"""Leases of snowflake node ids, so that two processes never mint the same id.

A lease is a node and a time range. The row of a node keeps the end of its last range, and a new range always starts
after it: ranges of one node cannot overlap, whatever the clocks of the hosts say.
"""

import atexit
import os
import threading
import uuid

import structlog
from django import db
from django.db import connection, transaction

from eventbus.exceptions import IdsUnavailable
from eventbus.models import SnowflakeNode
from eventbus.snowflake import NODES, Generator, wall_clock_ms

LEASE_MS = 600_000
RENEW_EVERY_SECONDS = LEASE_MS / 1000 / 4

log = structlog.get_logger(__name__)


class NodeLease:
    """A leased node and its generator; a daemon thread renews it until `release`."""

    def __init__(self) -> None:
        self.owner = uuid.uuid4()
        self.generator = self._acquire()
        self._stopped = threading.Event()
        threading.Thread(target=self._keep_renewing, name="snowflake-lease", daemon=True).start()

    def next_id(self) -> int:
        """Return a new id. Raises `IdsUnavailable` when the lease ran out and PostgreSQL cannot renew it."""
        try:
            return self.generator.next_id()
        except IdsUnavailable:
            self.renew()
            return self.generator.next_id()

    def renew(self) -> None:
        """Extend the range, or lease another node if this one expired and was given away."""
        until_ms = max(wall_clock_ms(), self.generator.last_ms) + LEASE_MS
        try:
            renewed = SnowflakeNode.objects.filter(node_id=self.generator.node_id, owner=self.owner).update(
                leased_until_ms=until_ms
            )
            if renewed:
                self.generator.until_ms = until_ms
            else:
                self.generator = self._acquire()
        except db.Error as error:
            raise IdsUnavailable from error

    def stop_renewing(self) -> None:
        self._stopped.set()

    def release(self) -> None:
        """Give the node back; the next holder starts after the last id minted here."""
        self.stop_renewing()
        SnowflakeNode.objects.filter(node_id=self.generator.node_id, owner=self.owner).update(
            leased_until_ms=self.generator.last_ms, owner=None
        )

    def _acquire(self) -> Generator:
        try:
            return _lease_free_node(self.owner)
        except db.Error as error:
            raise IdsUnavailable from error

    def _keep_renewing(self) -> None:
        while not self._stopped.wait(RENEW_EVERY_SECONDS):
            try:
                self.renew()
            except IdsUnavailable as error:
                log.warning("snowflake_lease_not_renewed", error=str(error.__cause__))
            finally:
                connection.close()


@transaction.atomic
def _lease_free_node(owner: uuid.UUID) -> Generator:
    # Locking only free rows, longest free first, lets many processes start at once without waiting.
    SnowflakeNode.objects.bulk_create(
        [SnowflakeNode(node_id=n) for n in range(NODES)] if not SnowflakeNode.objects.exists() else [],
        ignore_conflicts=True,
    )
    now = wall_clock_ms()
    node = (
        SnowflakeNode.objects.select_for_update(skip_locked=True)
        .filter(leased_until_ms__lt=now)
        .order_by("leased_until_ms")
        .first()
    )
    if node is None:
        raise IdsUnavailable(f"All {NODES} snowflake nodes are leased.")
    node.owner, node.leased_until_ms = owner, now + LEASE_MS
    node.save()
    return Generator(node.node_id, start_ms=now, until_ms=node.leased_until_ms)


_lease: NodeLease | None = None
_lease_lock = threading.Lock()


def next_id() -> int:
    """Return a new snowflake id from this process's lease, made at the first call (so: after any fork)."""
    return (_lease or _make_lease()).next_id()


def next_id_without_waiting() -> int:
    """Return a new id, or raise `IdsUnavailable` where that would mean to ask PostgreSQL."""
    lease = _lease
    if lease is None:
        raise IdsUnavailable
    return lease.generator.next_id()


def release() -> None:
    """Give this process's node back, if it holds one."""
    if lease := forget():
        try:
            lease.release()
        except db.Error as error:
            log.warning("snowflake_lease_not_released", error=str(error))


def forget() -> NodeLease | None:
    """Take the lease from this process without giving its node back, and return it; the next id leases anew."""
    global _lease
    with _lease_lock:
        lease, _lease = _lease, None
    if lease:
        lease.stop_renewing()
    return lease


def _make_lease() -> NodeLease:
    global _lease
    with _lease_lock:
        if _lease is None:
            _lease = NodeLease()
        return _lease


def _forget_after_fork() -> None:
    global _lease, _lease_lock
    _lease, _lease_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(release)
