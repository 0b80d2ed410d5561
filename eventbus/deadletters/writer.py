"""Writing dead letters: durable before the source offset is committed, and stopped before they
become a flood.
"""

import time
from collections import deque

import structlog
from django.conf import settings

from eventbus import metrics, producer, retry
from eventbus.deadletters import letters
from eventbus.deadletters import store as dead_letter_store
from eventbus.exceptions import DeadLetterFlood, RecordTooLarge
from eventbus.record import Delivery, Record
from eventbus.subscription import Burial

log = structlog.get_logger(__name__)


class DeadLetterWriter(Burial):
    """Writes dead letters for one consumer group and stops the worker when they become a flood.

    A replay that fails again is none: somebody asked for it, it is in the dead letters already, and
    a worker that stopped for it would meet the rest of the replay at its next start.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._recent: deque[float] = deque(maxlen=settings.DLQ_FLOOD_COUNT)

    def write(self, record: Record, error: BaseException, delivery: Delivery | None) -> None:
        """Return once the dead letter is durable: in Kafka, or stored at once where it is too big
        for Kafka.

        Raises `PublishFailed` or `DatabaseError` (try again; the source offset must not be
        committed) and `DeadLetterFlood`.
        """
        is_replay = bool(letters.proven_entries([record]))
        if not is_replay:
            self._refuse_flood(error)
        dead_letter = letters.make(record, error, delivery, self._group)
        try:
            producer.publish_record(
                dead_letter.topic, dead_letter.key, dead_letter.value, dead_letter.headers
            )
        except RecordTooLarge:
            dead_letter_store.store([dead_letter])
        if not is_replay:
            self._recent.append(time.monotonic())
        metrics.dlq_messages_total.labels(retry.reason(error)).inc()
        log.error(
            "dead_letter",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error=retry.reason(error),
        )

    def _refuse_flood(self, error: BaseException) -> None:
        full = len(self._recent) == self._recent.maxlen
        if full and time.monotonic() - self._recent[0] < settings.DLQ_FLOOD_SECONDS:
            raise DeadLetterFlood(
                f"{len(self._recent)} events became dead letters within {settings.DLQ_FLOOD_SECONDS} s, the last by "
                f"{retry.reason(error)}. Stopped before the topic drains into the dead letters: "
                "fix the cause (see `manage.py dlq list`), then start the worker again."
            )
