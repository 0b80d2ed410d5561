"""From the dead-letter topic into PostgreSQL: what `run_dlq` does with each batch."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.db.models import F
from django.db.models.functions import Now

from eventbus import cells, retry
from eventbus.database.current import atomic, connection
from eventbus.database.sql import as_bytes, execute
from eventbus.dead_letter_headers import Claim, Failure, own_headers
from eventbus.deadletters import erasing
from eventbus.exceptions import WorkerStopping
from eventbus.models import (
    ConsumerOffset,
    DeadLetter,
    DeadLetterFailure,
    DeadLetterGroup,
    ProcessedEvent,
)
from eventbus.portion import Portion
from eventbus.record import Record
from eventbus.subscription import Turn, Work
from eventbus.telemetry import correlation

_VALUES = re.compile(r"\"[^\"]*\"|'[^']*'|\b[0-9a-fA-F]{8,}\b|\d+")
# What people read keeps small numbers: "a number from 1 to 2^63" says more than "a number from … to
# …^…".
_PRIVATE = re.compile(r"\"[^\"]*\"|(?<!\w)'[^']*'|\b[0-9a-fA-F]{8,}\b|\d{5,}")
MAX_GROUP_MESSAGE_CHARS = 300


class DeadLetterStore(Work):
    """Stores batches of dead letters, each once: the work of `run_dlq`."""

    def __init__(self) -> None:
        self._portion = Portion()

    def process(self, records: Sequence[Record], turn: Turn) -> None:
        """Return when every record is stored, however long PostgreSQL is away.

        Raises `WorkerStopping`.
        """
        correlation.bind_records(records)
        try:
            for portion in self._portion.cut(records):
                self._process(portion, turn)
        finally:
            connection.close()

    def _process(self, records: Sequence[Record], turn: Turn) -> None:
        if turn.stopping():
            raise WorkerStopping
        repeat = retry.until_too_much if len(records) > 1 else retry.until_possible
        try:
            repeat(turn.wait, store, records)
        except DatabaseError as error:
            if not retry.is_too_much(error):
                raise
            self._portion.was_too_much(len(records))
            for portion in self._portion.cut(records):
                self._process(portion, turn)
        else:
            self._portion.went_well(len(records))


@atomic()
def store(records: Sequence[Record]) -> None:
    """Store the dead letters of our cell: a new entry each, or one more failure of the entry that a
    replay belongs to; none of users who were erased after it.
    """
    # Before it is asked who was erased: an erasure waits for those who hold it. Keeps nobody out.
    execute("LOCK TABLE dead_letters IN ROW EXCLUSIVE MODE")
    for record in records:
        failure = Failure.of(record)
        # By name: what a cell serves may change between the two.
        is_ours = cells.owner_of(failure.group).name == cells.here().name
        if is_ours or _is_inherited(failure):
            _store(record, failure)


def _is_inherited(failure: Failure) -> bool:
    """Tell whether this database is a copy of the other cell's that was made after the failure: that
    event is not applied in it either.
    """
    where = {"topic": failure.topic, "partition": failure.partition}
    passed = ConsumerOffset.objects.filter(
        group=failure.group, next_offset__gt=failure.offset, **where
    )
    return passed.exists()


def fingerprint(event_type: str, exception: str, message: str) -> str:
    """Return the same hash for failures with one cause: values in the message do not count."""
    return hashlib.sha256(
        "\0".join((event_type, exception, normalise(message))).encode()
    ).hexdigest()


def normalise(message: str) -> str:
    """Return the message with quoted values, numbers and hashes replaced, so that like failures
    look alike.

    PostgreSQL's `DETAIL` is left out: it shows the row, a post's text included.
    """
    message = message.partition("\nDETAIL:")[0]
    return _VALUES.sub("…", message)[:MAX_GROUP_MESSAGE_CHARS]


def readable(message: str) -> str:
    """Return the message for people: without quoted values, ids and hashes, and without
    PostgreSQL's `DETAIL`.
    """
    message = message.partition("\nDETAIL:")[0]
    return _PRIVATE.sub("…", message)[:MAX_GROUP_MESSAGE_CHARS]


def _store(record: Record, failure: Failure) -> None:
    # There is at most one. `first` would ask for the lowest id, and be answered by going through all
    # ids where statistics take these for few.
    for known in DeadLetterFailure.objects.filter(**_origin(failure)).select_related("entry"):
        if _is_of(record, known.entry):
            return
        # Whoever wrote these headers names an origin that is another record's. This one is known by
        # where it is.
        failure = replace(
            failure, topic=record.topic, partition=record.partition, offset=record.offset, group=""
        )
        if DeadLetterFailure.objects.filter(**_origin(failure)).exists():
            return
    named = erasing.event_in(record.value)
    # By the header alone anyone could have a record taken for one that needs nobody's attention.
    event_id = failure.event_id if named == failure.event_id else None
    # What names no event is as old as its header says: of an erased user nothing is kept.
    if erasing.is_erased(record, failure.event_id if named is None else event_id):
        erasing.conclude(record.value, failure.event_id, failure.event_type)
        return
    group = _count_in_group(failure)
    entry = _replayed_entry(record) or _new_entry(record, failure, group)
    entry.group = group
    entry.attempts = F("attempts") + 1
    entry.last_failed_at = failure.failed_at
    _set_state(entry, failure, event_id)
    entry.save()
    DeadLetterFailure.objects.create(
        entry=entry,
        **_origin(failure),
        exception=failure.exception,
        message=failure.message,
        stack_trace=failure.stack_trace,
        retries=failure.attempts,
        first_failed_at=failure.first_failed_at,
        failed_at=failure.failed_at,
    )


def _origin(failure: Failure) -> dict[str, Any]:
    """Return what tells one failed delivery from any other."""
    return {
        "topic": failure.topic,
        "partition": failure.partition,
        "offset": failure.offset,
        "timestamp_ms": failure.timestamp_ms,
        "consumer_group": failure.group,
    }


def _is_of(record: Record, entry: DeadLetter) -> bool:
    return record.key == as_bytes(entry.key) and record.value == as_bytes(entry.value)


def _count_in_group(failure: Failure) -> DeadLetterGroup:
    group, _created = DeadLetterGroup.objects.get_or_create(
        fingerprint=fingerprint(failure.event_type, failure.exception, failure.message),
        defaults={
            "event_type": failure.event_type,
            "exception": failure.exception,
            "message": readable(failure.message),
            "first_seen": failure.failed_at,
            "last_seen": failure.failed_at,
        },
    )
    DeadLetterGroup.objects.filter(id=group.id).update(failures=F("failures") + 1)
    DeadLetterGroup.objects.filter(id=group.id, last_seen__lt=failure.failed_at).update(
        last_seen=failure.failed_at
    )
    return group


def _replayed_entry(record: Record) -> DeadLetter | None:
    claim = Claim.of(record)
    if claim is None:
        return None
    entry = (
        DeadLetter.objects.select_for_update()
        .defer("value", "headers")
        .filter(id=claim.entry_id)
        .first()
    )
    return entry if entry and claim.is_proven(entry.token, record) else None


def _new_entry(record: Record, failure: Failure, group: DeadLetterGroup) -> DeadLetter:
    return DeadLetter.objects.create(
        group=group,
        topic=failure.topic,
        key=record.key,
        value=record.value,
        headers=[
            # PostgreSQL's JSON knows no NUL.
            [name.replace("\0", "\\0"), None if value is None else base64.b64encode(value).decode()]
            for name, value in own_headers(record.headers)
        ],
        event_id=failure.event_id,
        event_type=failure.event_type,
        last_failed_at=failure.failed_at,
    )


def _set_state(entry: DeadLetter, failure: Failure, event_id: int | None) -> None:
    if entry.state == DeadLetter.State.DISCARDED:
        return
    if _was_processed_since(entry, failure, event_id):
        entry.state = DeadLetter.State.RESOLVED
        entry.resolved_at = entry.resolved_at or Now()
        return
    is_parked = entry.replays >= settings.DLQ_MAX_REPLAYS
    entry.state = DeadLetter.State.PARKED if is_parked else DeadLetter.State.OPEN
    entry.resolved_at = None


def _was_processed_since(entry: DeadLetter, failure: Failure, event_id: int | None) -> bool:
    """Tell whether the event has had its effect after this failure, of which we hear late."""
    if (
        entry.state == DeadLetter.State.RESOLVED
        and entry.resolved_at
        and entry.resolved_at >= failure.failed_at
    ):
        return True
    if event_id is None:
        return False
    return ProcessedEvent.objects.filter(
        event_id=event_id, processed_at__gte=failure.failed_at
    ).exists()
