"""A worker's heartbeat: a row in `worker_heartbeats` that says, every few seconds, that it lives and what it does.

Written by a thread of its own, so it goes on while a batch waits for something; the row then shows for how long.
"""

import os
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import UUID, uuid4

import structlog
from django.db import DatabaseError, close_old_connections, connection
from django.db.models.functions import Now

from eventbus.consumer import EventConsumer
from eventbus.models import PipelineMinute, WorkerHeartbeat
from eventbus.slowest import Slowest

BEAT_SECONDS = 3.0
STOP_SECONDS = 5.0
PRUNE_EVERY_BEATS = 20
# Nobody looks further back. Both tables stay at a few thousand rows.
KEEP_HEARTBEATS = timedelta(hours=1)
KEEP_MINUTES = timedelta(days=1)

log = structlog.get_logger(__name__)


class Heart:
    """Beats while the context is open, and says at its end that the worker has left. Failures are logged."""

    def __init__(
        self,
        consumer: EventConsumer,
        topic: str,
        group: str,
        worker_id: UUID | None = None,
        slowest: Slowest | None = None,
    ) -> None:
        self._consumer = consumer
        self._slowest = slowest or Slowest()
        self._constants = {
            "worker_id": worker_id or uuid4(),
            "topic": topic,
            "group": group,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": datetime.now(UTC),
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=STOP_SECONDS)

    def _run(self) -> None:
        beats = 0
        while not self._stopping.is_set():
            self._try_to_beat(prune=beats % PRUNE_EVERY_BEATS == 0)
            beats += 1
            self._stopping.wait(BEAT_SECONDS)
        self._try_to_beat(leaving=True)
        connection.close()

    def _try_to_beat(self, *, prune: bool = False, leaving: bool = False) -> None:
        try:
            close_old_connections()
            self.beat(leaving=leaving)
            if prune:
                forget_old()
        except DatabaseError as error:
            log.warning("heartbeat_failed", error=str(error))
        except Exception:
            log.exception("heartbeat_failed")

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
            [row], update_conflicts=True, unique_fields=["worker_id"], update_fields=sorted(changing)
        )


def forget_old() -> None:
    """Delete what is too old to be shown."""
    WorkerHeartbeat.objects.filter(last_seen_at__lt=Now() - KEEP_HEARTBEATS).delete()
    PipelineMinute.objects.filter(minute__lt=Now() - KEEP_MINUTES).delete()
