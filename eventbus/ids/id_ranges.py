"""Ranges of ids for what is imported: the n-th thing of a file always has the n-th id, however
often it is imported.
"""

from typing import NamedTuple, Self

from eventbus import cells
from eventbus.database.current import atomic
from eventbus.exceptions import IdsUnavailable
from eventbus.ids import clock, node_lease
from eventbus.ids.idempotency import Ids
from eventbus.ids.snowflake import MAX_SEQUENCE, NODE_BITS, SEQUENCE_BITS, compose
from eventbus.models import IdempotencyKey, SnowflakeNode

IDS_A_MS = MAX_SEQUENCE + 1
NOBODY = 0  # the user under whom imports keep their keys: ids of users start at 1


class IdRange(NamedTuple):
    """Ids of one node in consecutive milliseconds, rising."""

    first: int

    def write(self, number: int) -> Ids:
        """Return the ids of the write of this number, from 0 on; the object's is the lower one."""
        return Ids(event_id=self._id(2 * number + 1), object_id=self._id(2 * number))

    def _id(self, number: int) -> int:
        ms, sequence = divmod(number, IDS_A_MS)
        return self.first + (ms << (NODE_BITS + SEQUENCE_BITS)) + sequence

    @classmethod
    def lease(cls, writes: int) -> Self:
        """Take so many ids that nobody else has or ever gets. Raises `IdsUnavailable`."""
        with cells.on(cells.of_ids()):
            return cls(_lease(2 * writes))


class Reserved(NamedTuple):
    """A range, and whether it was reserved by an earlier call."""

    ids: IdRange
    is_known: bool


def reserve(name: str, writes: int) -> Reserved:
    """Return the ids kept under `name`, as `eventbus.ids.idempotency` keeps those of one request,
    and as long.

    Raises `IdsUnavailable`.
    """
    with cells.on(cells.of_ids()):
        return _reserve(name, writes)


def _reserve(name: str, writes: int) -> Reserved:
    kept = IdempotencyKey.objects.filter(user_id=NOBODY, key=name).first()
    if kept is not None:
        return Reserved(IdRange(kept.object_id), is_known=True)
    ids = IdRange.lease(writes)
    last = ids.write(max(0, writes - 1)).event_id
    kept, is_new = IdempotencyKey.objects.get_or_create(
        user_id=NOBODY,
        key=name,
        defaults={"fingerprint": "", "object_id": ids.first, "event_id": last},
    )
    return Reserved(IdRange(kept.object_id), is_known=not is_new)


def _lease(count: int) -> int:
    node_lease.next_id()  # the clock is known then
    node_lease.prepare(clock.exact_now_ms())
    with atomic():
        now = clock.exact_now_ms()
        node = (
            SnowflakeNode.objects.select_for_update(skip_locked=True)
            .filter(leased_until_ms__lt=now)
            .order_by("leased_until_ms")
            .first()
        )
        if node is None:
            raise IdsUnavailable
        # A range of a node always starts after its last one (eventbus.ids.node_lease), so this one
        # is ours for good.
        node.owner, node.leased_until_ms = None, now + count // IDS_A_MS
        node.save()
        return compose(now, node.node_id, 0)
