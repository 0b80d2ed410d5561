"""Dead letters in the admin: seen, replayed and discarded by those who may, and written down."""

import html
import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from eventbus import bulk, producer
from eventbus.deadletters import replay
from eventbus.models import OVERDUE_AFTER, DeadLetter
from tests.eventbus import broker
from tests.eventbus.dead_letter_factories import an_entry

pytestmark = pytest.mark.django_db(transaction=True)

GROUPS, ENTRIES = "/admin/eventbus/deadlettergroup/", "/admin/eventbus/deadletter/"


def operator(client: Client, *permissions: str) -> Client:
    """Log in someone who may do just this."""
    user = User.objects.create_user("operator", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return client


def act(client: Client, url: str, action: str, rows: list[int], **fields: str) -> str:
    data = {"action": action, "_selected_action": [str(row) for row in rows], **fields}
    return client.post(url, data, follow=True).content.decode()


def test_groups_show_cause_counts_and_the_last_day(admin_client: Client) -> None:
    an_entry(message="bad note 1")
    an_entry(message="bad note 2")
    page = admin_client.get(GROUPS).content.decode()
    assert "note.taken: ValueError" in page
    assert "bad note 1" in page
    assert 'field-unresolved">2<' in page
    assert "<title>0 failures in 24 hours" in page  # these failed long ago


def test_an_entry_shows_payload_headers_and_stack_trace(admin_client: Client) -> None:
    entry = an_entry(value=b'{"a": [1]}')
    page = admin_client.get(f"{ENTRIES}{entry.id}/change/").content.decode()
    assert "{\n  &quot;a&quot;: [\n    1\n  ]\n}" in page
    assert "traceparent: 00-1-2-01" in page
    assert "Traceback …" in page


def test_a_payload_cannot_inject_markup(admin_client: Client) -> None:
    entry = an_entry(value=b"<script>alert(1)</script>", message="<b>bold</b>")
    page = admin_client.get(f"{ENTRIES}{entry.id}/change/").content.decode()
    assert "<script>alert" not in page
    assert "<b>bold" not in page


def test_replaying_a_group_asks_first_and_is_logged(admin_client: Client, feed_events: str) -> None:
    entry = an_entry()
    an_entry()
    assert "Replay 2 dead letters?" in act(
        admin_client, GROUPS, "replay_selected", [entry.group_id]
    )
    assert broker.read_all(feed_events) == []
    told = act(admin_client, GROUPS, "replay_selected", [entry.group_id], confirmed="yes")
    assert "2 replayed, 0 skipped" in told
    assert len(broker.read_all(feed_events)) == 2
    assert LogEntry.objects.get().change_message == "Replayed 2 dead letters."


def test_replays_without_an_outcome_are_repeated_only_when_ticked(
    admin_client: Client, feed_events: str
) -> None:
    entry = an_entry()
    long_ago = timezone.now() - OVERDUE_AFTER
    DeadLetter.objects.update(state=DeadLetter.State.REPLAYED, last_replayed_at=long_ago)
    asked = act(admin_client, ENTRIES, "replay_selected", [entry.id])
    assert "Replay 1 dead letter, 1 of them replayed before without an outcome so far?" in asked
    assert "0 replayed, 1 skipped" in act(
        admin_client, ENTRIES, "replay_selected", [entry.id], confirmed="yes"
    )
    told = act(admin_client, ENTRIES, "replay_selected", [entry.id], confirmed="yes", overdue="yes")
    assert "1 replayed, 0 skipped" in told
    assert len(broker.read_all(feed_events)) == 1


def test_discarding_needs_a_reason_and_is_logged(admin_client: Client) -> None:
    entry = an_entry()
    assert "A reason is needed." in act(
        admin_client, ENTRIES, "discard_selected", [entry.id], confirmed="yes"
    )
    assert "1 discarded." in act(
        admin_client, ENTRIES, "discard_selected", [entry.id], confirmed="yes", reason="spam"
    )
    entry.refresh_from_db()
    assert (entry.state, entry.discard_reason) == (DeadLetter.State.DISCARDED, "spam")
    assert LogEntry.objects.get().change_message == "Discarded 1 dead letters: spam"


def test_an_entry_is_replayed_and_discarded_on_its_own_page(
    admin_client: Client, feed_events: str
) -> None:
    entry = an_entry()
    page = f"{ENTRIES}{entry.id}/change/"
    shown = admin_client.get(page).content.decode()
    assert all(f">{verb}</button>" in shown for verb in ("Replay", "Discard"))
    confirmed = {"from_entry": "yes", "confirmed": "yes"}
    data = {"action": "replay_selected", "_selected_action": str(entry.id), **confirmed}
    assert admin_client.post(ENTRIES, data).headers["Location"] == page
    assert "1 replayed, 0 skipped" in admin_client.get(page).content.decode()
    assert len(broker.read_all(feed_events)) == 1


def test_very_many_are_replayed_in_parts_that_a_request_can_do(
    admin_client: Client, feed_events: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PART_SECONDS", 0.0)
    monkeypatch.setattr(replay, "BATCH", 2)
    entries = [an_entry() for _ in range(5)]
    data = {"confirmed": "yes", "select_across": "1"}
    told = [act(admin_client, ENTRIES, "replay_selected", [entries[0].id], **data)]
    while job := re.search(r'name="job" value="([^"]+)"', told[-1]):
        data["job"] = html.unescape(job[1])
        told.append(act(admin_client, ENTRIES, "replay_selected", [entries[0].id], **data))
    assert [re.findall(r"\d of 5", page)[0] for page in told[:-1]] == ["2 of 5", "4 of 5"]
    assert "5 replayed, 0 skipped" in told[-1]
    assert len(broker.read_all(feed_events)) == 5
    assert LogEntry.objects.get().change_message == "Replayed 5 dead letters."


def test_without_kafka_a_replay_ends_with_the_first_batch_and_says_so(
    admin_client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 2)
    settings.KAFKA_BOOTSTRAP_SERVERS, settings.KAFKA_PUBLISH_TIMEOUT_MS = "127.0.0.1:1", 300
    entries = [an_entry() for _ in range(5)]
    producer.close()
    try:
        data = {"confirmed": "yes", "select_across": "1"}
        told = act(admin_client, ENTRIES, "replay_selected", [entries[0].id], **data)
    finally:
        producer.close()
    assert "0 replayed, 0 skipped, 2 not acknowledged by Kafka." in told
    assert "Kafka took none of the last ones. The rest is still open." in told
    assert DeadLetter.objects.filter(state=DeadLetter.State.OPEN).count() == 5


@pytest.mark.parametrize(
    ("permissions", "actions"),
    [
        ([], set()),
        (["replay_deadletter"], {"replay_selected"}),
        (["discard_deadletter"], {"discard_selected"}),
        (["replay_deadletter", "discard_deadletter"], {"replay_selected", "discard_selected"}),
    ],
)
def test_seeing_replaying_and_discarding_are_permissions_apart(
    client: Client, permissions: list[str], actions: set[str]
) -> None:
    entry = an_entry()
    operator(client, "view_deadletter", *permissions)
    page = client.get(ENTRIES).content.decode()
    assert {
        action for action in ("replay_selected", "discard_selected") if action in page
    } == actions
    act(client, ENTRIES, "discard_selected", [entry.id], confirmed="yes", reason="spam")
    entry.refresh_from_db()
    assert (entry.state == DeadLetter.State.DISCARDED) == ("discard_selected" in actions)


def test_nobody_changes_or_deletes_a_dead_letter_by_hand(admin_client: Client) -> None:
    entry = an_entry()
    assert admin_client.get(f"{ENTRIES}add/").status_code == 403
    assert (
        admin_client.post(f"{ENTRIES}{entry.id}/change/", {"state": "resolved"}).status_code == 403
    )
    assert admin_client.post(f"{ENTRIES}{entry.id}/delete/", {"post": "yes"}).status_code == 403


def test_without_permission_there_is_nothing_to_see(client: Client) -> None:
    operator(client)
    assert client.get(ENTRIES).status_code == 403
    assert client.get(GROUPS).status_code == 403
