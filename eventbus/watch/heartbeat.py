"""A worker's heartbeat: a row in `worker_heartbeats` that says, every few seconds, that it lives
and what it does.

Written by a thread of its own, so it goes on while a batch waits for something; the row then shows
for how long.
"""

import itertools
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

from django.db.models.functions import Now

from eventbus import cells
from eventbus.background import Repeating
from eventbus.consume.consumer import EventConsumer
from eventbus.consume.slowest import Slowest
from eventbus.ids import clock
from eventbus.models import PipelineMinute, WorkerHeartbeat

BEAT_SECONDS = 3.0
PRUNE_EVERY_BEATS = 20
# Nobody looks further back. Both tables stay at a few thousand rows.
KEEP_HEARTBEATS = timedelta(hours=1)
KEEP_MINUTES = timedelta(days=1)


class Heart:
    """Tells of a worker while `beating`, and at the end of that that it has left."""

    def __init__(
        self, consumer: EventConsumer, worker_id: UUID | None = None, slowest: Slowest | None = None
    ) -> None:
        self._consumer = consumer
        self._slowest = slowest or Slowest()
        self._beats = itertools.count()
        self._constants = {
            "worker_id": worker_id or uuid4(),
            "topic": consumer.topic,
            "group": consumer.group,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": datetime.now(UTC),
        }

    def beating(self) -> Repeating:
        """Return the context in which the heart beats; failures are logged."""
        return Repeating(
            "heartbeat", self._turn, pause=BEAT_SECONDS, at_end=partial(self.beat, leaving=True)
        )

    def _turn(self) -> None:
        cells.refresh()
        self.beat()
        clock.read()  # by which the worker tells ids from the future
        if next(self._beats) % PRUNE_EVERY_BEATS == 0:
            forget_old()

    def beat(self, *, leaving: bool = False) -> None:
        """Write the row, in one statement. Raises `DatabaseError`."""
        in_hand = self._consumer.records_in_hand
        row = WorkerHeartbeat(
            **self._constants,
            last_seen_at=Now(),
            left_at=Now() if leaving else None,
            partitions=[] if leaving else self._consumer.partitions(),
            records_in_hand=in_hand,
            busy_seconds=time.monotonic() - self._consumer.busy_since if in_hand else 0.0,
            records_done=self._consumer.records_done,
            slowest=self._slowest.top(),
        )
        changing = {field.name for field in WorkerHeartbeat._meta.fields} - self._constants.keys()
        WorkerHeartbeat.objects.bulk_create(
            [row],
            update_conflicts=True,
            unique_fields=["worker_id"],
            update_fields=sorted(changing),
        )


def forget_old() -> None:
    """Delete what is too old to be shown."""
    WorkerHeartbeat.objects.filter(last_seen_at__lt=Now() - KEEP_HEARTBEATS).delete()
    PipelineMinute.objects.filter(minute__lt=Now() - KEEP_MINUTES).delete()
