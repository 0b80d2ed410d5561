"""Replaying and discarding dead letters; the admin and `manage.py dlq` call the same functions.

A replay publishes the very record again: key, bytes, own headers and hence event id, plus the
header that lets its outcome find the entry. An entry counts as replayed only once Kafka has
acknowledged it; it is resolved by the worker that processes it, or opened again by the next
failure.
"""

import base64
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import structlog
from confluent_kafka import KafkaError
from django.db.models import F
from django.db.models.functions import Now

from eventbus import cells, kafka, producer
from eventbus.database.current import atomic
from eventbus.database.sql import as_bytes
from eventbus.dead_letter_headers import Claim, cell_header
from eventbus.exceptions import RecordTooLarge
from eventbus.models import DeadLetter

BATCH = 100
# Of very many, so that no transaction keeps others from them for long.
DISCARDED_AT_ONCE = 2_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Replayed:
    """What a replay did: `skipped` entries were not replayable (any more), or their topic is
    not.
    """

    acknowledged: int = 0
    skipped: int = 0
    failed: int = 0


def replay(
    entry_ids: Iterable[int],
    *,
    rate: float | None = None,
    parked: bool = False,
    overdue: bool = False,
) -> Iterator[Replayed]:
    """Replay entries, oldest first, at most `rate` a second; yield the running totals after each
    batch.

    Only open entries are taken; for `parked` and `overdue` see `DeadLetterQuerySet.replayable`.
    """
    totals = Replayed()
    size = BATCH if rate is None else max(1, min(BATCH, int(rate)))
    for ids in batches(sorted(entry_ids), size):
        started = time.monotonic()
        _replay_batch(ids, totals, parked=parked, overdue=overdue)
        yield totals
        if rate is not None:
            time.sleep(max(0.0, len(ids) / rate - (time.monotonic() - started)))


@atomic()
def _replay_batch(ids: list[int], totals: Replayed, *, parked: bool, overdue: bool) -> None:
    # The rows stay locked until Kafka has answered: nobody else replays them meanwhile, and the
    # worker that processes one waits for its new state.
    entries = list(
        DeadLetter.objects.replayable(parked=parked, overdue=overdue)
        .filter(id__in=ids, topic__in=_replayable_topics())
        .select_for_update(skip_locked=True)
        .order_by("id")
    )
    acknowledged = _publish(entries)
    DeadLetter.objects.filter(id__in=acknowledged).update(
        state=DeadLetter.State.REPLAYED, replays=F("replays") + 1, last_replayed_at=Now()
    )
    totals.acknowledged += len(acknowledged)
    totals.failed += len(entries) - len(acknowledged)
    totals.skipped += len(ids) - len(entries)


def _publish(entries: list[DeadLetter]) -> list[int]:
    """Publish the entries and return the ids of those that Kafka has acknowledged."""
    acknowledged: list[int] = []
    for entry in entries:
        on_delivery = partial(_note, acknowledged, entry.id)
        try:
            producer.get().send(
                entry.topic,
                as_bytes(entry.key),
                as_bytes(entry.value),
                _headers(entry),
                on_delivery,
            )
        except RecordTooLarge as error:
            on_delivery(error)
    producer.get().flush()
    return list(acknowledged)


def _note(
    acknowledged: list[int], entry_id: int, error: KafkaError | RecordTooLarge | None
) -> None:
    if error is None:
        acknowledged.append(entry_id)
    else:
        log.warning("dead_letter_not_replayed", entry=entry_id, error=str(error))


def discard(entry_ids: Iterable[int], *, reason: str) -> int:
    """Close entries for good without processing them; return how many were still unresolved.

    Raises `ValueError` without a reason.
    """
    if not reason.strip():
        raise ValueError("Say why these dead letters are discarded.")
    return (
        DeadLetter.objects.unresolved()
        .filter(id__in=list(entry_ids))
        .update(state=DeadLetter.State.DISCARDED, discard_reason=reason.strip(), resolved_at=Now())
    )


def _replayable_topics() -> list[str]:
    """Return where replays may go: a dead letter's origin is only a header, which anyone could have
    written.
    """
    return [kafka.FEED_EVENTS]


def _headers(entry: DeadLetter) -> list[tuple[str, bytes | None]]:
    own = [
        (name, None if value is None else base64.b64decode(value)) for name, value in entry.headers
    ]
    claim = Claim.make(entry.id, entry.token, as_bytes(entry.key), as_bytes(entry.value))
    return [*own, claim.to_header(), *cell_header(cells.here())]


def batches(ids: list[int], size: int) -> Iterator[list[int]]:
    """Yield the ids, `size` at a time."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
