"""Storing dead letters: each once, whole, grouped by cause."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.utils import timezone

from eventbus.dead_letter_headers import ENTRY, Claim
from eventbus.deadletters import letters, payloads
from eventbus.deadletters import store as dead_letter_store
from eventbus.exceptions import UndecodableEvent, WorkerStopping
from eventbus.models import DeadLetter, DeadLetterFailure, DeadLetterGroup, ProcessedEvent
from eventbus.record import Record
from tests.eventbus.dead_letter_factories import a_dead_letter, an_entry
from tests.eventbus.journal import raises
from tests.eventbus.turns import FreeTurn

pytestmark = pytest.mark.django_db


def test_a_dead_letter_is_stored_whole() -> None:
    record = a_dead_letter(value=bytes(range(256)), key=b"\xff")
    dead_letter_store.store([record])
    entry = DeadLetter.objects.get()
    assert (bytes(entry.key or b""), bytes(entry.value or b"")) == (b"\xff", bytes(range(256)))
    assert (
        payloads.headers(entry.headers)
        == "traceparent: 00-1-2-01\nbinary: \\xff\x00\nnone: (no value)"
    )
    assert (entry.state, entry.event_id, entry.attempts) == (DeadLetter.State.OPEN, 41, 1)


def test_a_dead_letter_delivered_again_is_stored_once() -> None:
    record = a_dead_letter()
    dead_letter_store.store([record, record])
    dead_letter_store.store([record])
    assert DeadLetter.objects.get().attempts == 1
    assert DeadLetterGroup.objects.get().failures == 1


def test_one_written_twice_because_the_worker_died_in_between_is_stored_once() -> None:
    dead_letter_store.store([a_dead_letter(origin_offset=5), a_dead_letter(origin_offset=5)])
    assert DeadLetter.objects.count() == 1


def test_the_same_offset_of_a_topic_made_anew_is_another_dead_letter() -> None:
    dead_letter_store.store([a_dead_letter(origin_offset=5)])
    dead_letter_store.store([a_dead_letter(origin_offset=5, timestamp_ms="1800000000000")])
    assert DeadLetter.objects.count() == 2


def test_a_replay_that_fails_again_is_one_more_attempt_of_the_same_entry() -> None:
    entry = an_entry()
    DeadLetter.objects.update(state=DeadLetter.State.REPLAYED, replays=1)
    dead_letter_store.store([a_dead_letter(entry=entry, message="another reason")])
    entry.refresh_from_db()
    assert (entry.state, entry.attempts, entry.failures.count()) == (DeadLetter.State.OPEN, 2, 2)
    assert entry.group.message == "another reason"


# What comes from elsewhere ------------------------------------------------------------------------


def test_a_record_whose_headers_alone_name_an_event_that_was_processed_waits_for_somebody() -> None:
    ProcessedEvent.objects.create(event_id=41, actor_id=7, type="note.taken")
    dead_letter_store.store([a_dead_letter(value=b"mine", event_id=41)])
    assert DeadLetter.objects.get().state == DeadLetter.State.OPEN


def test_a_record_that_only_says_to_be_a_replay_is_an_entry_of_its_own() -> None:
    entry = an_entry()
    forged = a_dead_letter(value=b"mine", entry=entry)
    headers = [header for header in forged.headers if header[0] != ENTRY]
    guess = Claim.make(entry.id, UUID(int=0), b"7", b"mine")
    dead_letter_store.store([replace(forged, headers=[*headers, guess.to_header()])])
    entry.refresh_from_db()
    assert (entry.state, entry.attempts) == (DeadLetter.State.OPEN, 1)
    assert bytes(DeadLetter.objects.latest("id").value or b"") == b"mine"


def test_a_claim_taken_from_a_replay_makes_no_other_record_vanish() -> None:
    entry = an_entry()
    replay = a_dead_letter(entry=entry)
    dead_letter_store.store([replace(replay, value=b"mine")])
    entry.refresh_from_db()
    assert entry.attempts == 1
    assert bytes(DeadLetter.objects.latest("id").value or b"") == b"mine"


def test_a_record_that_names_the_origin_of_another_is_stored_too_and_once() -> None:
    dead_letter_store.store([a_dead_letter(origin_offset=5)])
    forged = a_dead_letter(origin_offset=5, value=b"mine")
    dead_letter_store.store([forged, forged])
    assert [bytes(entry.value or b"") for entry in DeadLetter.objects.order_by("id")][1:] == [
        b"mine"
    ]


# What comes late ----------------------------------------------------------------------------------


def test_a_late_failure_does_not_open_what_a_later_replay_has_resolved() -> None:
    entry = an_entry()
    DeadLetter.objects.update(state=DeadLetter.State.REPLAYED, replays=2)
    DeadLetter.objects.close_replayed([entry.id])
    dead_letter_store.store([a_dead_letter(entry=entry)])
    entry.refresh_from_db()
    assert (entry.state, entry.attempts, entry.failures.count()) == (
        DeadLetter.State.RESOLVED,
        2,
        2,
    )


def test_the_dead_letter_of_an_event_that_was_processed_since_is_kept_but_waits_for_nobody() -> (
    None
):
    ProcessedEvent.objects.create(event_id=41, type="note.taken")
    entry = an_entry(event_id=41)
    assert (entry.state, entry.resolved_at is None) == (DeadLetter.State.RESOLVED, False)


def test_what_failed_after_its_event_was_processed_is_open() -> None:
    # Such as by what follows the commit.
    entry = an_entry()
    DeadLetter.objects.close_replayed([entry.id])
    ProcessedEvent.objects.create(event_id=41, type="note.taken")
    in_a_minute = (timezone.now() + timedelta(minutes=1)).isoformat()
    dead_letter_store.store([a_dead_letter(entry=entry, failed_at=in_a_minute)])
    entry.refresh_from_db()
    assert (entry.state, entry.resolved_at) == (DeadLetter.State.OPEN, None)


def test_every_entry_has_a_token_of_its_own_those_from_before_there_were_any_too() -> None:
    for _ in range(3):
        an_entry()
    connection.check_constraints()
    with connection.schema_editor() as schema:
        field = DeadLetter._meta.get_field("token")
        schema.remove_field(DeadLetter, field)
        schema.add_field(DeadLetter, field)
    assert len(set(DeadLetter.objects.values_list("token", flat=True))) == 3


def test_an_entry_replayed_too_often_is_parked(settings: object) -> None:
    entry = an_entry()
    DeadLetter.objects.update(state=DeadLetter.State.REPLAYED, replays=5)
    dead_letter_store.store([a_dead_letter(entry=entry)])
    entry.refresh_from_db()
    assert entry.state == DeadLetter.State.PARKED


def test_failures_that_differ_only_in_values_are_one_group() -> None:
    for event_id in (1, 2, 3):
        an_entry(
            event_id=event_id, message=f"note {event_id} of 'user{event_id}' at 0x{event_id:016x}"
        )
    an_entry(message="something else")
    an_entry(error="builtins.KeyError", message="note 4 of 'user4' at 0x0")
    assert sorted(DeadLetterGroup.objects.values_list("failures", flat=True)) == [1, 1, 3]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "id: must be a decimal string of 1 to 2^63 - 1",
            "id: must be a decimal string of 1 to 2^63 - 1",
        ),
        ("post 123456789012 of 'Ann' doesn't fit", "post … of … doesn't fit"),
        ('no "secret" here\nDETAIL: Failing row contains (…)', "no … here"),
    ],
)
def test_a_groups_message_is_readable_and_tells_no_values(message: str, shown: str) -> None:
    assert an_entry(message=message).group.message == shown


def test_a_record_without_any_context_is_stored_all_the_same() -> None:
    dead_letter_store.store([Record("dead-letter-events", 0, 9, None, None, [], 1_700_000_000_000)])
    failure = DeadLetterFailure.objects.get()
    assert (failure.topic, failure.offset, failure.exception) == (
        "dead-letter-events",
        9,
        "unknown",
    )


@pytest.mark.parametrize("timestamp_ms", [-(2**63), -1, 0, 253_402_300_800_000, 2**63 - 1])
def test_no_timestamp_of_a_record_stops_its_dead_letter(timestamp_ms: int) -> None:
    original = Record("notes", 0, 9, b"1", b"?", [], timestamp_ms)
    dead_letter = letters.make(original, UndecodableEvent(), None, "note-takers")
    dead_letter_store.store([replace(dead_letter, timestamp_ms=timestamp_ms)])
    dead_letter_store.store([dead_letter])
    assert DeadLetterFailure.objects.get().timestamp_ms == max(0, timestamp_ms)


@pytest.mark.parametrize("odd", ["x" * 2_000, "nul \0 inside", "-1", "９", "9" * 40, "\ud800"])
def test_odd_context_never_stops_a_dead_letter(odd: str) -> None:
    names = [
        "offset",
        "attempts",
        "event_id",
        "first_failed_at",
        "message",
        "event_type",
        "exception",
        "group",
    ]
    headers = [(f"dlq.{name}", odd.encode("utf-8", "surrogatepass")) for name in names]
    dead_letter_store.store(
        [Record("dead-letter-events", 0, 9, b"k", b"v", headers, 1_700_000_000_000)]
    )
    assert DeadLetter.objects.count() == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'{"a":1}', '{\n  "a": 1\n}'),
        ("grüße".encode(), "grüße"),
        (b"\xff\x00A", "00000000  ff 00 41                                         ..A"),
        (None, "(no value)"),
        # Deeper than JSON can be written again.
        (b"[" * 300 + b"]" * 300, "[" * 300 + "]" * 300),
    ],
)
def test_payloads_are_shown_readably_whatever_they_are(value: bytes | None, shown: str) -> None:
    assert payloads.pretty(value) == shown


def test_a_huge_payload_is_cut_and_says_so() -> None:
    cut = "\n… cut here; 1000000 bytes in all"
    assert payloads.pretty(b"x" * 1_000_000).endswith(cut)
    header = base64.b64encode(b"x" * 1_000_000).decode()
    assert payloads.headers([("a", header)]).endswith(cut)


def test_long_json_is_not_indented_for_nested_deep_that_would_be_many_times_its_size() -> None:
    nested = b"[" * 200 + b"0" + b",0" * 100_000 + b"]" * 200
    assert payloads.pretty(nested).startswith("[" * 200 + "0,0")


def test_what_somebody_wrote_does_not_make_a_group_of_its_own() -> None:
    refusal = 'new row for relation "posts" violates check constraint "no_robots"\nDETAIL:  Failing row contains ({}).'
    for text in ("41, My robot waters the plants", "42, A robot like yours"):
        dead_letter_store.store(
            [a_dead_letter(origin_offset=int(text[:2]), message=refusal.format(text))]
        )
    group = DeadLetterGroup.objects.get()
    assert group.failures == 2
    assert "robot" not in group.message


def store_at_most(count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have more than `count` dead letters be too much for one transaction; return how many were
    tried in each.
    """
    sizes: list[int] = []
    whole = dead_letter_store.store

    def store_a_few(records: Sequence[Record]) -> None:
        sizes.append(len(records))
        if len(records) > count:
            with transaction.atomic():
                raises("53200")
        whole(records)

    monkeypatch.setattr(dead_letter_store, "store", store_a_few)
    return sizes


@pytest.mark.django_db(transaction=True)
def test_dead_letters_that_are_too_much_at_once_are_stored_in_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = store_at_most(2, monkeypatch)
    work = dead_letter_store.DeadLetterStore()
    work.process([a_dead_letter(origin_offset=n) for n in range(4)], FreeTurn())
    assert DeadLetter.objects.count() == 4
    assert sizes == [4, 4, 2, 2]
    # The next batch does not find it out again.
    work.process([a_dead_letter(origin_offset=n) for n in range(4, 8)], FreeTurn())
    assert DeadLetter.objects.count() == 8
    assert sizes[4:] == [2, 2]


@pytest.mark.django_db(transaction=True)
def test_a_store_told_to_stop_does_so_between_any_two_transactions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store_at_most(1, monkeypatch)
    turn = FreeTurn()
    monkeypatch.setattr(turn, "stopping", DeadLetter.objects.exists)
    with pytest.raises(WorkerStopping):
        dead_letter_store.DeadLetterStore().process(
            [a_dead_letter(origin_offset=n) for n in range(4)], turn
        )
    assert DeadLetter.objects.count() == 1
