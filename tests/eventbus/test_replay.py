"""Replaying dead letters: the very record again, done only once Kafka has it."""

import sys
import time
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings

from eventbus import kafka
from eventbus.consume.processing import Processor
from eventbus.dead_letter_headers import Claim
from eventbus.deadletters import replay
from eventbus.event import Event
from eventbus.models import OVERDUE_AFTER, DeadLetter, ProcessedEvent
from eventbus.record import Record
from tests.eventbus import broker
from tests.eventbus.dead_letter_factories import an_entry
from tests.eventbus.turns import FreeTurn

pytestmark = pytest.mark.django_db(transaction=True)


def replay_all(**options: Any) -> replay.Replayed:
    *_, totals = [
        replay.Replayed(),
        *replay.replay(DeadLetter.objects.values_list("id", flat=True), **options),
    ]
    return totals


def state_of(entry: DeadLetter) -> str:
    entry.refresh_from_db()
    return entry.state


def outcome_overdue() -> None:
    DeadLetter.objects.update(last_replayed_at=timezone.now() - OVERDUE_AFTER)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("dlq", *arguments, stdout=out)
    return out.getvalue()


def test_a_replay_is_the_same_record_with_the_number_of_its_entry(feed_events: str) -> None:
    entry = an_entry(value=b"\xff\x00", key=b"\xfe")
    assert replay_all() == replay.Replayed(acknowledged=1)
    [record] = broker.read_all(feed_events)
    assert (record.key, record.value) == (b"\xfe", b"\xff\x00")
    assert list(record.headers) == [
        ("traceparent", b"00-1-2-01"),
        ("binary", b"\xff\x00"),
        ("none", None),
        Claim.make(entry.id, entry.token, b"\xfe", b"\xff\x00").to_header(),
    ]
    assert (state_of(entry), entry.replays) == (DeadLetter.State.REPLAYED, 1)


def test_an_entry_is_replayed_once_until_its_outcome_is_known(feed_events: str) -> None:
    an_entry()
    replay_all()
    assert replay_all() == replay.Replayed(skipped=1)
    assert len(broker.read_all(feed_events)) == 1


def test_an_entry_that_kafka_did_not_acknowledge_stays_open(
    settings: Settings, own_producer: None
) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 200
    entry = an_entry()
    assert replay_all() == replay.Replayed(failed=1)
    assert (state_of(entry), entry.replays) == (DeadLetter.State.OPEN, 0)


def test_while_kafka_is_away_a_batch_leaves_one_line_in_the_log(
    settings: Settings, own_producer: None, caplog: pytest.LogCaptureFixture
) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 200
    first, *_others = [an_entry() for _ in range(5)]
    assert replay_all() == replay.Replayed(failed=5)
    [line] = [text for text in caplog.messages if "dead_letter_not_replayed" in text]
    assert f"'entry': {first.id}, 'count': 5" in line


def test_an_entry_too_big_for_kafka_stays_open_and_holds_up_no_other(feed_events: str) -> None:
    too_big = an_entry(value=b"x" * (kafka.MAX_DEAD_LETTER_BYTES + 1))
    fits = an_entry()
    assert replay_all() == replay.Replayed(acknowledged=1, failed=1)
    assert (state_of(too_big), state_of(fits)) == (DeadLetter.State.OPEN, DeadLetter.State.REPLAYED)


def test_only_allow_listed_topics_are_replayed_to(feed_events: str) -> None:
    entry = an_entry(topic="somebody-elses-topic")
    assert replay_all() == replay.Replayed(skipped=1)
    assert state_of(entry) == DeadLetter.State.OPEN


def test_parked_entries_are_replayed_only_when_asked_for(feed_events: str) -> None:
    an_entry()
    DeadLetter.objects.update(state=DeadLetter.State.PARKED)
    assert replay_all().skipped == 1
    assert replay_all(parked=True).acknowledged == 1


def test_a_replay_that_had_no_outcome_for_a_while_can_be_repeated_when_asked_for(
    feed_events: str,
) -> None:
    an_entry()
    replay_all()
    assert replay_all(overdue=True).skipped == 1
    outcome_overdue()
    assert replay_all().skipped == 1
    assert "1 replayed" in run("replay", "--all", "--overdue", "--yes")
    assert len(broker.read_all(feed_events)) == 2
    assert replay_all(overdue=True).skipped == 1


def test_discarding_needs_a_reason_and_is_final(feed_events: str) -> None:
    entry = an_entry()
    with pytest.raises(ValueError, match="why"):
        replay.discard([entry.id], reason=" ")
    assert replay.discard([entry.id], reason="a test event") == 1
    assert (state_of(entry), entry.discard_reason) == (DeadLetter.State.DISCARDED, "a test event")
    assert replay_all().skipped == 1


class Notes:
    """Handlers without an effect of their own."""

    def __init__(self, fail: bool) -> None:
        self._fail = fail

    def to_fact(self, event: Event) -> Event:
        return event

    def locked_keys(self, events: Sequence[Event]) -> set[int]:
        return {event.key for event in events}

    def plan(self, events: Sequence[Event]) -> list[list[Event]]:
        return [list(events)]

    def apply(self, _events: Sequence[Event], *, careful: bool, resume_after: int | None) -> None:
        if self._fail:
            raise ZeroDivisionError

    def after_commit(self, _events: Sequence[Event]) -> None:
        pass


def process(records: Sequence[Record], fail: bool) -> list[BaseException]:
    """Process records as a worker does; return what became dead letters."""
    turn = FreeTurn()
    Processor(Notes(fail)).process(records, turn)
    return turn.buried


def test_a_replay_that_succeeds_closes_its_entry_with_the_effect(feed_events: str) -> None:
    entry = an_entry()
    replay_all()
    assert process(broker.read_all(feed_events), fail=False) == []
    assert state_of(entry) == DeadLetter.State.RESOLVED
    assert ProcessedEvent.objects.get().event_id == entry.event_id


def test_a_replay_of_an_event_processed_meanwhile_closes_its_entry(feed_events: str) -> None:
    entry = an_entry()
    ProcessedEvent.objects.create(event_id=entry.event_id or 0, type="note.taken")
    replay_all()
    process(broker.read_all(feed_events), fail=True)
    assert state_of(entry) == DeadLetter.State.RESOLVED


def test_a_replay_that_fails_again_leaves_its_entry_unresolved(feed_events: str) -> None:
    entry = an_entry()
    replay_all()
    [error] = process(broker.read_all(feed_events), fail=True)
    assert isinstance(error, ZeroDivisionError)
    assert state_of(entry) == DeadLetter.State.REPLAYED


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (["--all"], 3),
        (["--error", "KeyError"], 1),
        (["--error", "builtins.KeyError"], 1),
        (["--type", "note.taken"], 3),
        (["--type", "other"], 0),
        (["--since", "2026-01-02T12:00:00"], 3),
        (["--until", "2026-01-02T12:00:00Z"], 0),
    ],
)
def test_the_command_selects_by_cause_type_and_time(
    feed_events: str, selection: list[str], chosen: int
) -> None:
    an_entry(error="builtins.KeyError")
    an_entry()
    an_entry()
    found = run("replay", "--dry-run", *selection)
    assert found.startswith(f"{chosen} dead letter")
    assert found.rstrip().endswith("to replay")
    assert broker.read_all(feed_events) == []
    run("replay", "--yes", *selection)
    assert len(broker.read_all(feed_events)) == chosen


def test_the_command_lists_groups_and_shows_an_entry_whole() -> None:
    entry = an_entry()
    an_entry(message="bad note 42")
    assert "2 unresolved\tnote.taken\tValueError: bad note 41" in run("list")
    listed = run("list", "--group", str(entry.group_id)).splitlines()
    assert [line.split("\t")[1:3] for line in listed] == [["open", "2026-01-02 12:00:00Z"]] * 2
    shown = run("show", str(entry.id))
    assert "\n1 attempt, 0 replays\n" in shown
    assert '"event_id": "41"' in shown
    assert "Traceback …" in shown
    assert "traceparent: 00-1-2-01" in shown


def test_the_command_asks_for_what_it_needs() -> None:
    with pytest.raises(CommandError, match="Say which"):
        run("replay", "--yes")
    with pytest.raises(CommandError, match="There is no dead letter 9"):
        run("show", "9")
    with pytest.raises(CommandError, match=r"is not a number from 0\.001"):
        run("replay", "--all", "--rate", "0")


def test_no_more_are_replayed_in_a_second_than_the_rate_allows(feed_events: str) -> None:
    for _ in range(9):
        an_entry()
    started_ms = time.time() * 1_000
    assert replay_all(rate=4).acknowledged == 9
    after_ms = sorted(record.timestamp_ms - started_ms for record in broker.read_all(feed_events))
    assert after_ms[4] >= 990  # two clocks, one of whole milliseconds
    assert after_ms[8] >= 1_990


def test_on_a_terminal_the_command_shows_how_far_it_is(
    feed_events: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        an_entry()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    run("replay", "--all", "--yes")
    assert "3/3" in terminal.getvalue()


@pytest.mark.parametrize("answer", ["", "n\n"])
def test_the_command_does_nothing_without_a_yes(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = an_entry()
    monkeypatch.setattr(sys, "stdin", StringIO(answer))
    with pytest.raises(CommandError, match="Pass --yes"):
        run("discard", "--all", "--reason", "spam")
    assert state_of(entry) == DeadLetter.State.OPEN


def test_the_command_fails_when_kafka_does_not_acknowledge(
    settings: Settings, own_producer: None
) -> None:
    settings.KAFKA_BOOTSTRAP_SERVERS = "127.0.0.1:1"
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 200
    an_entry()
    with pytest.raises(CommandError, match="still open"):
        run("replay", "--all", "--yes")


def test_the_command_discards_with_a_reason() -> None:
    entry = an_entry()
    assert "1 discarded" in run("discard", "--id", str(entry.id), "--reason", "spam", "--yes")
    assert state_of(entry) == DeadLetter.State.DISCARDED
