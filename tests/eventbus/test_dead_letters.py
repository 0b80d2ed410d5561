"""Dead letters: the record whole, the reason in its headers, and a stop before they become a
flood.
"""

import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from pytest_django import Settings

from eventbus import envelope, kafka
from eventbus.dead_letter_headers import ENTRY, Claim
from eventbus.deadletters import letters, payloads
from eventbus.deadletters import store as dead_letter_store
from eventbus.deadletters.writer import DeadLetterWriter
from eventbus.exceptions import DeadLetterFlood, InvalidEvent, UndecodableEvent
from eventbus.ids import clock
from eventbus.ids.snowflake import MAX_ID
from eventbus.models import DeadLetter
from eventbus.record import Delivery, Record
from tests.eventbus import broker
from tests.eventbus.dead_letter_factories import an_entry
from tests.eventbus.events import NOON, TYPE, a_record, an_event, counted

BINARY = bytes(range(256))
A_CLAIM = Claim.make(12, UUID(int=5), b"1", b"?")
OWN_HEADERS = [
    ("traceparent", b"00-1-2-01"),
    ("", BINARY),
    ("none", None),
    ("twice", b"1"),
    ("twice", b"2"),
]


def context_of(dead_letter: Record) -> dict[str, str]:
    """Return the `dlq.*` headers, without the prefix."""
    headers = [(name, value) for name, value in dead_letter.headers if name.startswith("dlq.")]
    assert len({name for name, _ in headers}) == len(headers)
    return {name.removeprefix("dlq."): (value or b"").decode() for name, value in headers}


def milliseconds_ago(count: int) -> datetime:
    return clock.now() - timedelta(milliseconds=count)


def own_headers_of(dead_letter: Record) -> list[tuple[str, bytes | None]]:
    return [header for header in dead_letter.headers if not header[0].startswith("dlq.")]


def a_failure(depth: int = 1) -> ValueError:
    """Return an error that was raised through `depth` calls."""
    try:
        _fail(depth)
    except ValueError as error:
        return error
    raise AssertionError


def _fail(depth: int) -> None:
    if depth == 0:
        raise ValueError("the note is unreadable")
    _fail(depth - 1)


@pytest.mark.parametrize(
    ("key", "value"), [(b"7", b'{"not": "an event"}'), (BINARY, BINARY), (b"", b""), (None, None)]
)
def test_the_record_is_kept_byte_for_byte(
    dead_letter_events: str, key: bytes | None, value: bytes | None
) -> None:
    record = Record("notes", 3, 41, key, value, OWN_HEADERS, 1_700_000_000_123)
    DeadLetterWriter("note-takers").write(record, UndecodableEvent(), None)
    [dead_letter] = broker.read_all(dead_letter_events)
    assert (dead_letter.key, dead_letter.value) == (key, value)
    assert own_headers_of(dead_letter) == OWN_HEADERS


def test_the_headers_tell_where_the_record_was_and_why_it_failed(dead_letter_events: str) -> None:
    before, started = counted("dlq_messages_total", reason="ValueError"), milliseconds_ago(1)
    event = an_event(41, key=7)
    record = Record("notes", 3, 99, b"7", envelope.encode(event), [], 1_700_000_000_123)
    delivery = Delivery(record, event, taken_at=0, attempts=3, first_failed_at=NOON)

    DeadLetterWriter("note-takers").write(record, a_failure(), delivery)

    [dead_letter] = broker.read_all(dead_letter_events)
    context = context_of(dead_letter)
    stack_trace = context.pop("stack_trace")
    failed_at = datetime.fromisoformat(context.pop("failed_at"))
    assert started <= failed_at <= clock.now()
    assert "in _fail" in stack_trace
    assert stack_trace.endswith("ValueError: the note is unreadable\n")
    assert context == {
        "topic": "notes",
        "partition": "3",
        "offset": "99",
        "timestamp_ms": "1700000000123",
        "group": "note-takers",
        "exception": "builtins.ValueError",
        "message": "the note is unreadable",
        "attempts": "3",
        "first_failed_at": "2026-01-02T12:00:00.345+00:00",
        "event_id": "41",
        "event_type": TYPE,
    }
    assert counted("dlq_messages_total", reason="ValueError") == before + 1


def test_a_record_that_never_became_an_event_has_no_event_id(dead_letter_events: str) -> None:
    started = datetime.now(UTC).replace(microsecond=0)
    DeadLetterWriter("note-takers").write(
        Record("notes", 0, 0, b"1", b"?", [], 0), UndecodableEvent(), None
    )
    context = context_of(broker.read_all(dead_letter_events)[0])
    assert (context["event_id"], context["event_type"], context["attempts"]) == ("", "", "0")
    assert datetime.fromisoformat(context["first_failed_at"]) >= started


def test_headers_do_not_grow_however_often_a_record_is_replayed_and_fails(
    dead_letter_events: str,
) -> None:
    record = Record("notes", 0, 0, b"1", b"?", OWN_HEADERS, 0)
    for round_number in range(1, 6):
        DeadLetterWriter("note-takers").write(record, InvalidEvent(f"round {round_number}"), None)
        record = broker.read_all(dead_letter_events)[-1]
        assert own_headers_of(record) == OWN_HEADERS
        assert len(record.headers) == len(OWN_HEADERS) + 13
        assert context_of(record)["message"] == f"round {round_number}"


@pytest.mark.django_db
def test_a_replay_keeps_its_claim(dead_letter_events: str) -> None:
    replay = Record("notes", 0, 0, b"1", b"?", [A_CLAIM.to_header()], 0)
    DeadLetterWriter("note-takers").write(replay, UndecodableEvent(), None)
    assert Claim.of(broker.read_all(dead_letter_events)[0]) == A_CLAIM


@pytest.mark.parametrize(
    "claim", [None, b"", b"12", b"-1:", b"12:short", b"one:" + b"0" * 64, b"9" * 5_000]
)
def test_a_header_that_is_no_claim_names_no_entry(claim: bytes | None) -> None:
    assert letters.entry_of(Record("notes", 0, 0, b"1", b"?", [(ENTRY, claim)], 0)) is None


def test_long_messages_and_stack_traces_are_cut(dead_letter_events: str) -> None:
    error = InvalidEvent("long " * 100_000)
    error.__cause__ = a_failure(depth=500)
    DeadLetterWriter("note-takers").write(a_record(an_event()), error, None)
    context = context_of(broker.read_all(dead_letter_events)[0])
    assert len(context["message"]) == letters.MAX_MESSAGE_CHARS
    assert len(context["stack_trace"]) == letters.MAX_STACK_TRACE_CHARS


def test_a_message_that_is_no_text_is_written_all_the_same(dead_letter_events: str) -> None:
    DeadLetterWriter("note-takers").write(
        a_record(an_event()), InvalidEvent("half an emoji: \ud83d"), None
    )
    assert context_of(broker.read_all(dead_letter_events)[0])["message"] == "half an emoji: ?"


@pytest.mark.parametrize("size", [kafka.MAX_MESSAGE_BYTES, 3 * kafka.MAX_MESSAGE_BYTES])
def test_a_record_up_to_and_past_the_limit_of_its_topic_fits_with_its_headers(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    topic = broker.unique_name()
    monkeypatch.setattr(kafka, "DEAD_LETTER_EVENTS", topic)
    monkeypatch.setattr(kafka, "TOPICS", (topic,))
    kafka.create_topics()
    value = os.urandom(size)
    error = InvalidEvent("👍" * letters.MAX_STACK_TRACE_CHARS)
    DeadLetterWriter("note-takers").write(
        Record("notes", 0, 0, b"1", value, OWN_HEADERS, 0), error, None
    )
    assert [dead_letter.value for dead_letter in broker.read_all(topic)] == [value]


@pytest.mark.django_db
def test_a_dead_letter_too_big_for_the_client_is_stored_at_once_whole_and_once(
    dead_letter_events: str,
) -> None:
    before = counted("dlq_messages_total", reason="ValueError")
    event = an_event(41)
    value = b"x" * (kafka.MAX_DEAD_LETTER_BYTES + 1)
    record = Record("notes", 3, 99, b"\xff", value, [("binary", BINARY)], 1_700_000_000_123)
    for _ in range(2):  # the worker may die before its offset is committed
        DeadLetterWriter("note-takers").write(
            record, a_failure(), Delivery(record, event, taken_at=0, attempts=3)
        )
    entry = DeadLetter.objects.get()
    assert (bytes(entry.key or b""), bytes(entry.value or b"")) == (b"\xff", value)
    assert payloads.headers(entry.headers).startswith("binary: ")
    assert (entry.topic, entry.event_id, entry.attempts) == ("notes", 41, 1)
    failure = entry.failures.get()
    assert (str(failure), failure.consumer_group, failure.retries) == (
        "notes/3/99",
        "note-takers",
        3,
    )
    assert broker.read_all(dead_letter_events) == []
    assert counted("dlq_messages_total", reason="ValueError") == before + 2


@pytest.mark.django_db
def test_a_dead_letter_too_big_for_the_topic_is_kept_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = broker.create_topic(max_message_bytes=1_000)
    monkeypatch.setattr(kafka, "DEAD_LETTER_EVENTS", topic)
    value = os.urandom(10_000)
    DeadLetterWriter("note-takers").write(
        Record("notes", 0, 0, b"1", value, (), 0), UndecodableEvent(), None
    )
    # Apache Kafka refuses it, so it is stored; the embedded broker has no such limit.
    in_kafka = [dead_letter.value for dead_letter in broker.read_all(topic)]
    stored = [bytes(entry.value or b"") for entry in DeadLetter.objects.all()]
    assert in_kafka + stored == [value]


@pytest.mark.django_db
def test_the_highest_event_id_there_can_be_is_stored(dead_letter_events: str) -> None:
    event = an_event(MAX_ID)
    record = a_record(an_event())
    DeadLetterWriter("note-takers").write(record, a_failure(), Delivery(record, event, taken_at=0))
    dead_letter_store.store(broker.read_all(dead_letter_events))
    assert DeadLetter.objects.get().event_id == MAX_ID


@pytest.mark.django_db
@pytest.mark.parametrize(
    "header",
    [
        ("a\0b", BINARY),
        ("dlq.partition", b"9" * 18),
        ("dlq.offset", b"9" * 40),
        ("dlq.attempts", b"-1"),
        ("dlq.topic", b"t" * 1_000),
        ("dlq.event_type", b"\xff\0"),
        ("dlq.first_failed_at", b"0001-01-01T00:00:00+23:59"),
    ],
)
def test_no_odd_header_keeps_a_dead_letter_from_being_stored(header: tuple[str, bytes]) -> None:
    dead_letter_store.store([Record("dead-letter-events", 0, 0, b"1", b"?", [header], 0)])
    assert bytes(DeadLetter.objects.get().value or b"") == b"?"


def test_a_flood_is_stopped_before_it_drains_the_topic(
    dead_letter_events: str, settings: Settings
) -> None:
    settings.DLQ_FLOOD_COUNT = 5
    writer = DeadLetterWriter("note-takers")
    for _ in range(5):
        writer.write(a_record(an_event()), UndecodableEvent(), None)
    with pytest.raises(
        DeadLetterFlood, match="5 events became dead letters within 60 s, the last by ValueError"
    ):
        writer.write(a_record(an_event()), a_failure(), None)
    assert len(broker.read_all(dead_letter_events)) == 5


def test_as_many_dead_letters_over_a_longer_time_are_no_flood(
    dead_letter_events: str, settings: Settings
) -> None:
    settings.DLQ_FLOOD_COUNT = 5
    settings.DLQ_FLOOD_SECONDS = 0
    writer = DeadLetterWriter("note-takers")
    for _ in range(10):
        writer.write(a_record(an_event()), UndecodableEvent(), None)
    assert len(broker.read_all(dead_letter_events)) == 10


@pytest.mark.django_db
def test_replays_that_fail_again_are_no_flood(dead_letter_events: str, settings: Settings) -> None:
    settings.DLQ_FLOOD_COUNT = 2
    writer = DeadLetterWriter("note-takers")
    for _ in range(5):
        entry = an_entry()
        claim = Claim.make(entry.id, entry.token, b"1", b"?")
        writer.write(Record("notes", 0, 0, b"1", b"?", [claim.to_header()], 0), a_failure(), None)
    assert len(broker.read_all(dead_letter_events)) == 5


@pytest.mark.django_db
def test_who_only_says_to_be_a_replay_is_part_of_a_flood(
    dead_letter_events: str, settings: Settings
) -> None:
    settings.DLQ_FLOOD_COUNT = 2
    writer = DeadLetterWriter("note-takers")
    entry = an_entry()
    forged = Claim.make(entry.id, UUID(int=0), b"1", b"?")
    record = Record("notes", 0, 0, b"1", b"?", [forged.to_header()], 0)
    for _ in range(2):
        writer.write(record, a_failure(), None)
    with pytest.raises(DeadLetterFlood):
        writer.write(record, a_failure(), None)
