"""`erase_user` and `export_user`, and pages that were cached before an erasure."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from eventbus import envelope
from eventbus.models import ProcessedEvent
from feeds import erasure, fanout
from feeds.models import Feed
from tests.eventbus.conftest import feed_events
from tests.eventbus.dead_letter_factories import an_entry
from tests.factories import (
    PostCreatedFactory,
    UserBlockedFactory,
    UserErasedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnmutedFactory,
    apply,
    follow_all,
)
from tests.feeds.model import open_feed

pytestmark = pytest.mark.django_db(transaction=True)

__all__ = ["feed_events"]

USER = 7_777


def said_by(*command: Any) -> str:
    out = StringIO()
    call_command(*command, stdout=out)
    return out.getvalue()


def test_erase_user_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("n\n"))
    with pytest.raises(CommandError, match="Nothing was done"):
        said_by("erase_user", USER)
    monkeypatch.setattr("sys.stdin", StringIO(""))
    with pytest.raises(CommandError, match="--yes"):
        said_by("erase_user", USER)


def test_erase_user_tells_the_event(feed_events: str) -> None:
    assert said_by("erase_user", USER, "--yes").startswith("accepted as event ")


@pytest.mark.parametrize("wrong", ["0", "-1", "x", str(2**63)])
def test_a_wrong_user_id_is_refused(wrong: str) -> None:
    for command in ("erase_user", "export_user"):
        with pytest.raises(CommandError, match="whole number"):
            said_by(command, wrong)


def test_export_user_also_looks_through_events_and_dead_letters() -> None:
    ProcessedEvent.objects.create(event_id=5, actor_id=USER, type="post.created")
    ProcessedEvent.objects.create(event_id=6, actor_id=1, type="post.created")
    an_entry(key=str(USER).encode())
    an_entry(key=b"1")
    lines = [json.loads(line) for line in said_by("export_user", USER).splitlines()]
    assert [line["kind"] for line in lines] == ["event", "dead_letter", "end"]
    assert (lines[0]["event_id"], lines[0]["type"]) == ("5", "post.created")
    assert "bad note" not in json.dumps(lines)


def test_export_user_does_not_tell_who_has_muted_or_blocked_the_user() -> None:
    of_others: list[Any] = [
        UserMutedFactory(user_id=2, muted_id=USER),
        UserUnmutedFactory(user_id=2, muted_id=USER),
        UserBlockedFactory(blocker_id=2, blocked_id=USER),
        UserUnblockedFactory(blocker_id=2, blocked_id=USER),
    ]
    own = UserMutedFactory(user_id=USER, muted_id=2)
    for fact in (*of_others, own):
        event = fact.to_event()
        an_entry(key=str(event.key).encode(), value=envelope.encode(event), event_id=event.event_id)
    lines = [json.loads(line) for line in said_by("export_user", USER).splitlines()]
    assert [line["kind"] for line in lines] == ["dead_letter", "end"]
    assert str(own.event_id) in lines[0]["event"]


@pytest.mark.parametrize("strategy", ["push", "pull"])
@pytest.mark.parametrize("pulled_since", [None, "2025-01-01T00:00:00Z"])
def test_no_cached_page_shows_what_is_erased(
    settings: Settings, strategy: str, pulled_since: str | None
) -> None:
    settings.FEED_STRATEGY = strategy
    follow_all([2], followee=USER)
    if pulled_since:
        Feed.objects.filter(user_id=USER).update(pulled_since=pulled_since)
    post = PostCreatedFactory(author_id=USER)
    apply(post)
    assert [open_feed(2) for _ in range(2)] == [([post.post_id], "miss"), ([post.post_id], "hit")]
    apply(UserErasedFactory(user_id=USER))
    assert erasure.erase_part()
    assert open_feed(2)[0] == []
    assert open_feed(2) == ([], "hit")
    while erasure.erase_part():
        while fanout.withdraw_part():
            pass
