"""`manage.py prune`: what nothing needs any more goes, in small steps and by an index; the rest
stays.
"""

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from eventbus import pruning
from eventbus.ids import clock
from eventbus.ids.snowflake import compose
from eventbus.models import DeadLetter, DeadLetterFailure, IdempotencyKey, ProcessedEvent
from tests.eventbus.dead_letter_factories import an_entry
from tests.eventbus.events import TYPE

pytestmark = pytest.mark.django_db(transaction=True)

DAY_MS = 86_400_000


def minted(days_ago: float, sequence: int = 0) -> int:
    """Return an event id of that age."""
    return compose(clock.host_ms() - int(days_ago * DAY_MS), node_id=1, sequence=sequence)


def an_event_processed(
    days_ago: float, *, minted_days_ago: float | None = None, sequence: int = 0
) -> int:
    event_id = minted(days_ago if minted_days_ago is None else minted_days_ago, sequence)
    ProcessedEvent.objects.create(
        event_id=event_id, type=TYPE, processed_at=timezone.now() - timedelta(days=days_ago)
    )
    return event_id


def a_key(days_ago: float, name: str) -> None:
    created_at = timezone.now() - timedelta(days=days_ago)
    IdempotencyKey.objects.create(
        user_id=1, key=name, fingerprint="f", event_id=1, object_id=1, created_at=created_at
    )


def a_closed_entry(days_ago: float, state: DeadLetter.State) -> DeadLetter:
    entry = an_entry()
    resolved_at = (
        None if state in DeadLetter.UNRESOLVED else timezone.now() - timedelta(days=days_ago)
    )
    DeadLetter.objects.filter(id=entry.id).update(state=state, resolved_at=resolved_at)
    return entry


def prune(*arguments: str) -> list[str]:
    out = StringIO()
    call_command("prune", *arguments, stdout=out)
    return out.getvalue().splitlines()


def remembered() -> set[int]:
    return set(ProcessedEvent.objects.values_list("event_id", flat=True))


def test_processed_events_past_the_retention_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "CHUNK", 3)
    for n in range(7):
        an_event_processed(8.1, sequence=n)
    young = {an_event_processed(7.9), an_event_processed(0)}
    assert "processed_events: 7 would be deleted" in prune("--dry-run")
    assert len(remembered()) == 9
    assert "processed_events: 7 deleted" in prune()
    assert remembered() == young
    assert "processed_events: 0 deleted" in prune()


def test_an_old_event_processed_lately_stays_for_kafka_may_bring_it_again() -> None:
    replayed = an_event_processed(1, minted_days_ago=100)
    an_event_processed(99)
    prune()
    assert remembered() == {replayed}


def test_an_old_event_whose_dead_letter_may_still_be_replayed_stays() -> None:
    waiting, closed = (an_event_processed(days, sequence=1) for days in (50, 40))
    an_entry(event_id=waiting, failed_at=timezone.now().isoformat())  # in what follows the commit
    DeadLetter.objects.filter(id=an_entry(event_id=closed).id).update(
        state=DeadLetter.State.DISCARDED
    )
    prune()
    assert remembered() == {waiting}


def test_expired_idempotency_keys_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "CHUNK", 2)
    for n in range(4):
        a_key(7.1, f"old {n}")
    a_key(6.9, "young")
    assert "idempotency_keys: 4 would be deleted" in prune("--dry-run")
    assert "idempotency_keys: 4 deleted" in prune()
    assert [key.key for key in IdempotencyKey.objects.all()] == ["young"]


def test_dead_letters_stay_for_good_unless_configured(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "CHUNK_OF_DEAD_LETTERS", 2)
    for _ in range(3):
        a_closed_entry(31, DeadLetter.State.RESOLVED)
    kept = [
        a_closed_entry(29, DeadLetter.State.DISCARDED),
        *(a_closed_entry(100, state) for state in DeadLetter.UNRESOLVED),
    ]
    assert not any(line.startswith("dead_letters") for line in prune())
    settings.DEAD_LETTERS_DAYS = 30
    assert "dead_letters: 3 would be deleted" in prune("--dry-run")
    assert "dead_letters: 3 deleted" in prune()
    assert set(DeadLetter.objects.all()) == set(kept)
    assert DeadLetterFailure.objects.count() == len(kept)


FILL = """
INSERT INTO processed_events (event_id, type, processed_at)
    SELECT %s + n, 'note.taken', now() - interval '9 days' FROM generate_series(1, 50000) AS n;
ANALYZE processed_events
"""


def test_a_step_reads_only_its_chunk_by_the_primary_key() -> None:
    first = minted(9)
    values: dict[str, Any] = {
        "dry_run": False,
        "after": first + 20_000,
        "below": minted(8),
        "before": timezone.now(),
        "limit": 500,
        "unresolved": list(DeadLetter.UNRESOLVED),
    }
    with connection.cursor() as cursor:
        cursor.execute(FILL, [first])
        cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + pruning._PRUNE_EVENTS, values)
        scans = list(scans_of(cursor.fetchone()[0][0]["Plan"], "processed_events"))
    # Once to find the events, once to delete them.
    assert [(scan["Index Name"], scan["Actual Rows"]) for scan in scans] == [
        ("processed_events_pkey", 500)
    ] * 2


def scans_of(node: dict[str, Any], table: str) -> Iterator[dict[str, Any]]:
    if node.get("Relation Name") == table and "Scan" in node["Node Type"]:
        yield node
    for child in node.get("Plans", []):
        yield from scans_of(child, table)
