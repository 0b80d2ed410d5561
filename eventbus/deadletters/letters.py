"""What a dead letter is: an event that cannot be processed, kept whole, with the reason in its
headers.

The record keeps its key, its value bytes and its own headers. The context goes into headers named
`dlq.*`, which replace any of an earlier round, so a record that fails, is replayed and fails again
does not grow. Only the claim to replay an entry stays, so that another failure, or success, finds
that entry.
"""

import traceback
from collections.abc import Collection, Iterable

from eventbus import kafka
from eventbus.dead_letter_headers import Claim, Failure, own_headers
from eventbus.ids import clock
from eventbus.models import DeadLetter
from eventbus.record import Delivery, Headers, Record

MAX_STACK_TRACE_CHARS = 8_000
MAX_MESSAGE_CHARS = 1_000


def make(record: Record, error: BaseException, delivery: Delivery | None, group: str) -> Record:
    """Return `record` as a dead letter of `group`, not yet written anywhere."""
    return Record(
        topic=kafka.DEAD_LETTER_EVENTS,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value,
        headers=[
            *own_headers(record.headers),
            *_claim(record),
            *_failure(record, error, delivery, group).to_headers(),
        ],
        timestamp_ms=clock.now_ms(),
    )


def entry_of(record: Record) -> int | None:
    """Return the id of the entry that `record` claims to replay, if it does; see
    `proven_entries`.
    """
    claim = Claim.of(record)
    return claim.entry_id if claim else None


def proven_entries(records: Iterable[Record]) -> set[int]:
    """Return the ids of the entries that some of `records` replay, as their headers say and prove.

    Asks PostgreSQL only if any says so. Raises `DatabaseError`.
    """
    claims = [(claim, record) for record in records if (claim := Claim.of(record))]
    if not claims:
        return set()
    tokens = DeadLetter.objects.tokens({claim.entry_id for claim, _ in claims})
    proven = set()
    for claim, record in claims:
        token = tokens.get(claim.entry_id)
        if token is not None and claim.is_proven(token, record):
            proven.add(claim.entry_id)
    return proven


def not_resolved_among(event_ids: Collection[int]) -> set[int]:
    """Return those of the events that are dead letters here or were discarded. Raises
    `DatabaseError`.
    """
    found = DeadLetter.objects.filter(event_id__in=event_ids)
    found = found.exclude(state=DeadLetter.State.RESOLVED)
    return {event_id for (event_id,) in found.values_list("event_id") if event_id is not None}


def close_replayed(records: Iterable[Record]) -> None:
    """Resolve the entries that `records` replay; call it in the transaction that processes them."""
    entries = proven_entries(records)
    if entries:
        DeadLetter.objects.close_replayed(entries)


def _claim(record: Record) -> Headers:
    claim = Claim.of(record)
    return [claim.to_header()] if claim else []


def _failure(
    record: Record, error: BaseException, delivery: Delivery | None, group: str
) -> Failure:
    now = clock.now()
    first_failed_at = (delivery.first_failed_at if delivery else None) or now
    return Failure(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=max(0, record.timestamp_ms),  # anything a producer likes; -1 for none
        group=group,
        exception=f"{type(error).__module__}.{type(error).__qualname__}",
        message=str(error)[:MAX_MESSAGE_CHARS],
        stack_trace="".join(traceback.format_exception(error))[-MAX_STACK_TRACE_CHARS:],
        attempts=delivery.attempts if delivery else 0,
        first_failed_at=first_failed_at,
        failed_at=now,
        event_id=delivery.event.event_id if delivery else None,
        event_type=delivery.event.type if delivery else "",
    )
