"""From the dead-letter topic into PostgreSQL: what `run_dlq` does with each batch."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import F

from eventbus import correlation, dead_letters, retry
from eventbus.models import DeadLetter, DeadLetterFailure, DeadLetterGroup
from eventbus.snowflake import MAX_ID
from eventbus.subscription import Record, Turn

_VALUES = re.compile(r"\"[^\"]*\"|'[^']*'|\b[0-9a-fA-F]{8,}\b|\d+")
MAX_GROUP_MESSAGE_CHARS = 300
MAX_INT = 2**31 - 1  # of PostgreSQL's integer


@dataclass(frozen=True, slots=True)
class Failure:
    """The context of a dead letter, read back from its headers; missing or odd ones never stop it being stored."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    group: str
    exception: str
    message: str
    stack_trace: str
    retries: int
    first_failed_at: datetime
    failed_at: datetime
    event_id: int | None
    event_type: str

    @classmethod
    def of(cls, record: Record) -> "Failure":
        context = {
            name.removeprefix(dead_letters.PREFIX): (value or b"").decode("utf-8", "replace").replace("\0", "\\0")
            for name, value in record.headers
            if name.startswith(dead_letters.PREFIX)
        }
        failed_at = _moment(record.timestamp_ms)
        return cls(
            topic=context.get("topic", record.topic)[:249],
            partition=_number(context, "partition", record.partition, maximum=MAX_INT),
            offset=_number(context, "offset", record.offset),
            timestamp_ms=_number(context, "timestamp_ms", record.timestamp_ms),
            group=context.get("group", "")[:255],
            exception=context.get("exception", "unknown")[:255],
            message=context.get("message", ""),
            stack_trace=context.get("stack_trace", ""),
            retries=_number(context, "attempts", 0, maximum=MAX_INT),
            first_failed_at=_time(context, "first_failed_at", failed_at),
            failed_at=failed_at,
            event_id=_number(context, "event_id", 0) or None,
            event_type=context.get("event_type", "")[:64],
        )


class DeadLetterStore:
    """Stores batches of dead letters, each once: the work of `run_dlq`."""

    def process(self, records: Sequence[Record], turn: Turn) -> None:
        """Return when every record is stored, however long PostgreSQL is away. Raises `WorkerStopping`."""
        correlation.bind_records(records)
        if len(records) <= 1:
            retry.until_possible(turn.wait, store, records)
            return
        try:
            retry.until_too_much(turn.wait, store, records)
        except DatabaseError as error:
            if not retry.is_too_much(error):
                raise
            middle = len(records) // 2
            self.process(records[:middle], turn)
            self.process(records[middle:], turn)


@transaction.atomic
def store(records: Sequence[Record]) -> None:
    """Store dead letters: a new entry each, or one more failure of the entry that a replay belongs to."""
    for record in records:
        _store(record, Failure.of(record))


def fingerprint(event_type: str, exception: str, message: str) -> str:
    """Return the same hash for failures with one cause: values in the message do not count."""
    return hashlib.sha256("\0".join((event_type, exception, normalise(message))).encode()).hexdigest()


def normalise(message: str) -> str:
    """Return the message with quoted values, numbers and hashes replaced, so that like failures look alike.

    PostgreSQL's `DETAIL` is left out: it shows the row, a post's text included.
    """
    message = message.partition("\nDETAIL:")[0]
    return _VALUES.sub("…", message)[:MAX_GROUP_MESSAGE_CHARS]


def _store(record: Record, failure: Failure) -> None:
    origin = {
        "topic": failure.topic,
        "partition": failure.partition,
        "offset": failure.offset,
        "timestamp_ms": failure.timestamp_ms,
        "consumer_group": failure.group,
    }
    if DeadLetterFailure.objects.filter(**origin).exists():
        return
    group = _count_in_group(failure)
    entry = _replayed_entry(record) or _new_entry(record, failure, group)
    entry.group = group
    entry.attempts = F("attempts") + 1
    entry.last_failed_at = failure.failed_at
    if entry.state != DeadLetter.State.DISCARDED:
        entry.state = _state_after_failure(entry)
    entry.save()
    DeadLetterFailure.objects.create(
        entry=entry,
        **origin,
        exception=failure.exception,
        message=failure.message,
        stack_trace=failure.stack_trace,
        retries=failure.retries,
        first_failed_at=failure.first_failed_at,
        failed_at=failure.failed_at,
    )


def _count_in_group(failure: Failure) -> DeadLetterGroup:
    group, _created = DeadLetterGroup.objects.get_or_create(
        fingerprint=fingerprint(failure.event_type, failure.exception, failure.message),
        defaults={
            "event_type": failure.event_type,
            "exception": failure.exception,
            "message": normalise(failure.message),
            "first_seen": failure.failed_at,
            "last_seen": failure.failed_at,
        },
    )
    DeadLetterGroup.objects.filter(id=group.id).update(failures=F("failures") + 1)
    DeadLetterGroup.objects.filter(id=group.id, last_seen__lt=failure.failed_at).update(last_seen=failure.failed_at)
    return group


def _replayed_entry(record: Record) -> DeadLetter | None:
    entry_id = dead_letters.entry_of(record)
    if entry_id is None:
        return None
    return DeadLetter.objects.select_for_update().filter(id=entry_id).first()


def _new_entry(record: Record, failure: Failure, group: DeadLetterGroup) -> DeadLetter:
    return DeadLetter.objects.create(
        group=group,
        topic=failure.topic,
        key=record.key,
        value=record.value,
        headers=[
            # PostgreSQL's JSON knows no NUL.
            [name.replace("\0", "\\0"), None if value is None else base64.b64encode(value).decode()]
            for name, value in record.headers
            if not name.startswith(dead_letters.PREFIX)
        ],
        event_id=failure.event_id,
        event_type=failure.event_type,
        last_failed_at=failure.failed_at,
    )


def _state_after_failure(entry: DeadLetter) -> DeadLetter.State:
    return DeadLetter.State.PARKED if entry.replays >= settings.DLQ_MAX_REPLAYS else DeadLetter.State.OPEN


def _number(context: Mapping[str, str], name: str, default: int, *, maximum: int = MAX_ID) -> int:
    text = context.get(name, "")
    if text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= maximum:
        return int(text)
    return default


def _moment(ms: int) -> datetime:
    """Return the time of a record, which its producer may set to anything; now for one that no calendar has."""
    try:
        return datetime.fromtimestamp(max(0, ms) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.now(UTC)


def _time(context: Mapping[str, str], name: str, default: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(context.get(name, ""))
        return moment.astimezone(UTC) if moment.tzinfo else default
    except (ValueError, OverflowError):
        return default
