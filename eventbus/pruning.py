"""Deleting what nothing needs any more: `manage.py prune`.

Every statement deletes a bounded number of rows and commits by itself, so that no worker waits for
it and PostgreSQL's vacuum is not held back. Interrupted, it is simply run again. `snowflake_nodes`
is not pruned: its rows are as many as there are nodes, and each keeps the end of the last lease,
which the next one must not overlap.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from eventbus.database.current import atomic
from eventbus.database.sql import execute, fetch
from eventbus.ids import clock
from eventbus.ids.snowflake import compose
from eventbus.models import DeadLetter, IdempotencyKey

CHUNK = 10_000
CHUNK_OF_DEAD_LETTERS = 500

# The id is the primary key and carries the time at which it was minted, so the walk needs no other
# index. An event that was processed long after, such as a replay, stays for the time after that;
# one with an unresolved dead letter stays as long as that may be replayed.
_PRUNE_EVENTS = """
WITH chunk AS MATERIALIZED (
    SELECT event_id, processed_at FROM processed_events
    WHERE event_id > %(after)s AND event_id < %(below)s ORDER BY event_id LIMIT %(limit)s
), old AS (
    SELECT event_id FROM chunk WHERE processed_at < %(before)s AND (
        SELECT true FROM dead_letters
        WHERE dead_letters.event_id = chunk.event_id AND state = ANY(%(unresolved)s) LIMIT 1
    ) IS NULL
), deleted AS (
    DELETE FROM processed_events WHERE NOT %(dry_run)s AND event_id = ANY(ARRAY(SELECT event_id FROM old))
)
SELECT (SELECT max(event_id) FROM chunk), (SELECT count(*) FROM old)
"""
_DELETE_KEYS = """
DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at < %s ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED
))
"""


def prune(*, dry_run: bool) -> Iterator[tuple[str, int]]:
    """Delete what has expired; yield table by table its name and how many rows that was, or with
    `dry_run` would be.
    """
    clock.read()  # this host's own may be wrong by days, and what is still needed would go
    now = clock.now()
    # Keys first: one that outlived its event's record would let a repeated request have its effect
    # again.
    yield (
        "idempotency_keys",
        _prune_keys(now - timedelta(days=settings.IDEMPOTENCY_KEY_DAYS), dry_run),
    )
    yield (
        "processed_events",
        _prune_events(now - timedelta(days=settings.PROCESSED_EVENTS_DAYS), dry_run),
    )
    if settings.DEAD_LETTERS_DAYS:
        yield (
            "dead_letters",
            _prune_dead_letters(now - timedelta(days=settings.DEAD_LETTERS_DAYS), dry_run),
        )


def _prune_keys(before: datetime, dry_run: bool) -> int:
    if dry_run:
        return IdempotencyKey.objects.filter(created_at__lt=before).count()
    total, deleted = 0, CHUNK
    while deleted == CHUNK:
        deleted = execute(_DELETE_KEYS, [before, CHUNK])
        total += deleted
    return total


def _prune_events(before: datetime, dry_run: bool) -> int:
    values: dict[str, Any] = {
        "after": 0,
        "below": compose(int(before.timestamp() * 1000), node_id=0, sequence=0),
        "before": before,
        "limit": CHUNK,
        "dry_run": dry_run,
        "unresolved": list(DeadLetter.UNRESOLVED),
    }
    total = 0
    while values["after"] is not None:
        [(values["after"], deleted)] = fetch(_PRUNE_EVENTS, values)
        total += deleted
    return total


def _prune_dead_letters(before: datetime, dry_run: bool) -> int:
    old = DeadLetter.objects.closed_before(before)
    if dry_run:
        return old.count()
    total = 0
    while deleted := _delete_dead_letters(before):
        total += deleted
    return total


@atomic()
def _delete_dead_letters(before: datetime) -> int:
    old = (
        DeadLetter.objects.closed_before(before).select_for_update(skip_locked=True).order_by("id")
    )
    ids = list(old.values_list("id", flat=True)[:CHUNK_OF_DEAD_LETTERS])
    # Only the ids: payloads may be megabytes each.
    DeadLetter.objects.filter(id__in=ids).only("id").delete()
    return len(ids)
