"""The feed inspector: every entry with its source, every difference, and what one can do about
it.
"""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from pytest_django import Settings

from eventbus.ids.snowflake import MAX_ID
from feeds import inspector, live_tickets
from feeds.models import RESTING, Feed, FeedEntry
from feeds.read import first_page, here
from tests.admin.pages import context_of, inspector_of, operator, rows_of, text_of
from tests.factories import (
    FeedSeenFactory,
    PostCreatedFactory,
    PostDeletedFactory,
    UserBlockedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnfollowedFactory,
    apply,
    follow_all,
)
from tests.feeds import model

pytestmark = pytest.mark.django_db(transaction=True)

NO_POST = 2**57  # later than all others
READER = 2


def sources(user_id: int = READER) -> list[str]:
    return [entry.source for entry in inspector.inspect(user_id).entries]


def differences(user_id: int = READER) -> dict[int, str]:
    entries = inspector.inspect(user_id).entries
    return {entry.row.post_id: entry.difference for entry in entries if entry.difference}


def post(author: int = 1) -> int:
    fact = PostCreatedFactory(author_id=author)
    apply(fact)
    return int(fact.post_id)


def posts(count: int) -> list[int]:
    facts = [PostCreatedFactory() for _ in range(count)]
    apply(*facts)
    return [fact.post_id for fact in facts]


def act(client: Client, action: str, user_id: int = READER) -> str:
    return client.post(inspector_of(user_id), {"action": action}, follow=True).content.decode()


@pytest.fixture(autouse=True)
def a_reader(db: None) -> None:
    follow_all([READER], 1)


def test_each_entry_says_where_it_comes_from(settings: Settings) -> None:
    settings.FEED_STRATEGY = "hybrid"
    oldest, pushed = posts(2)
    settings.FEED_STRATEGY = "pull"
    pulled = post()
    Feed.objects.filter(user_id=READER).update(floor=oldest)
    inspection = inspector.inspect(READER)
    assert [(entry.row.post_id, entry.source) for entry in inspection.entries] == [
        (pulled, "pulled"),
        (pushed, "pushed"),
        (oldest, "past the floor"),
    ]
    assert inspection.differences == 0
    assert inspection.complete


def test_what_it_calls_the_feed_is_what_readers_get(settings: Settings) -> None:
    settings.FEED_PUSH_MAX_FOLLOWERS = 1  # so author 1 is pulled
    follow_all([READER], 3)
    for author in (1, 3, READER, 1, 4):
        post(author)
    apply(PostDeletedFactory(post_id=post(3), author_id=3))
    inspection = inspector.inspect(READER)
    assert [entry.row.post_id for entry in inspection.entries if entry.row.defined] == model.feed(
        READER
    )
    assert inspection.differences == 0


def test_a_missing_row_shows() -> None:
    first, _second = posts(2)
    FeedEntry.objects.filter(user_id=READER, post_id=first).delete()
    assert differences() == {first: "missing: no row"}


def test_rows_too_many_show_with_the_reason(settings: Settings) -> None:
    deleted, foreign = post(), post(author=7)
    apply(PostDeletedFactory(post_id=deleted, author_id=1))
    settings.FEED_STRATEGY = "pull"
    pulled = post()
    rows = [(deleted, 1), (foreign, 7), (pulled, 1), (NO_POST, 8)]
    FeedEntry.objects.bulk_create(
        FeedEntry(user_id=READER, post_id=row, author_id=author) for row, author in rows
    )
    assert differences() == {
        deleted: "extra: the post is deleted",
        foreign: "extra: its author is not followed",
        pulled: "extra: a row of a post to be pulled",
        NO_POST: "extra: there is no such post",
    }


def test_a_row_below_the_floor_is_no_difference() -> None:
    old, new = posts(2)
    Feed.objects.filter(user_id=READER).update(floor=old)
    apply(UserUnfollowedFactory())
    [entry] = inspector.inspect(READER).entries
    assert (entry.row.post_id, entry.read_by_nobody, entry.difference) == (old, True, "")
    assert entry.row.post_id != new


def test_the_marker_is_shown(admin_client: Client) -> None:
    newest = posts(2)[-1]
    assert '<dd id="seen">–</dd>' in text_of(admin_client, inspector_of(READER))
    apply(FeedSeenFactory(user_id=READER, post_id=newest))
    assert f'<dd id="seen">{newest}</dd>' in text_of(admin_client, inspector_of(READER))


def test_a_resting_feed_comes_from_the_join_alone() -> None:
    posts(3)
    Feed.objects.filter(user_id=READER).update(floor=RESTING, idle=True)
    assert sources() == ["past the floor"] * 3


def test_the_newest_hundred_are_shown_and_no_difference_invented_below(
    admin_client: Client,
) -> None:
    many = posts(130)
    FeedEntry.objects.filter(user_id=READER, post_id__in=many[120:]).delete()
    inspection = inspector.inspect(READER)
    assert not inspection.complete
    assert inspection.differences == 10
    # 100 posts of the definition reach down to the 31st; the 100 newest rows reach further.
    assert [entry.row.post_id for entry in inspection.entries] == sorted(many[30:], reverse=True)
    assert "The newest 100 posts" in text_of(admin_client, inspector_of(READER))


def test_the_cache_is_told_as_it_is(settings: Settings) -> None:
    settings.FEED_STRATEGY = "pull"
    post()
    assert here.pages.inspect(READER).state == "miss: nothing is kept"
    first_page.read(READER)
    kept = here.pages.inspect(READER)
    assert (kept.state, kept.is_hit, list(kept.watched)) == ("hit", True, [1])
    assert 0 < kept.seconds_left <= settings.FEED_CACHE_TTL
    here.pages.invalidate([], [1])
    assert (
        here.pages.inspect(READER).state == "miss: an author that the page watches has posted since"
    )
    here.pages.look_up(3)
    assert here.pages.inspect(3).state == "miss: a reader is about to store the page"


def test_looking_changes_nothing(admin_client: Client) -> None:
    post()
    text_of(admin_client, inspector_of(READER))
    assert here.pages.inspect(READER).state == "miss: nothing is kept"


def test_verify_tells_equal_or_what_differs(admin_client: Client) -> None:
    first, second = posts(2)
    assert "Verified: 2 stored entries equal the definition." in act(admin_client, "verify")
    FeedEntry.objects.filter(user_id=READER, post_id=first).delete()
    FeedEntry.objects.create(user_id=READER, post_id=NO_POST, author_id=8)
    told = act(admin_client, "verify")
    assert (
        f"Differs: 1 missing, 1 extra, 0 duplicate entries. First: extra {NO_POST}, missing {first}."
        in told
    )
    assert str(second) in told


def test_rebuild_mends_and_is_logged(admin_client: Client) -> None:
    first, second = posts(2)
    FeedEntry.objects.filter(user_id=READER, post_id=first).delete()
    assert "Rebuilt." in act(admin_client, "rebuild")
    assert differences() == {}
    assert sources() == ["pushed", "pushed"]
    assert LogEntry.objects.get().change_message == "Rebuilt."
    assert second


def test_rebuilding_who_is_not_there_says_so(admin_client: Client) -> None:
    assert "the user is not known" in act(admin_client, "rebuild", user_id=99)
    assert not Feed.objects.filter(user_id=99).exists()


def test_dropping_the_cached_page(admin_client: Client) -> None:
    first_page.read(READER)
    assert here.pages.inspect(READER).is_hit
    assert "Cached page dropped." in act(admin_client, "drop")
    assert here.pages.inspect(READER).state == "miss: nothing is kept"


def test_an_action_nobody_knows_does_nothing(admin_client: Client) -> None:
    assert "No such action." in act(admin_client, "explode")
    assert not LogEntry.objects.exists()


def test_who_may_only_look_cannot_change(client: Client) -> None:
    operator(client, "view_feed")
    page = text_of(client, inspector_of(READER))
    assert "Verify" in page
    assert "Rebuild</button>" not in page
    assert client.post(inspector_of(READER), {"action": "rebuild"}).status_code == 403
    assert client.post(inspector_of(READER), {"action": "drop"}).status_code == 403
    assert "Verified" in act(client, "verify")


def test_contents_are_for_those_who_may_see_posts(client: Client) -> None:
    apply(PostCreatedFactory(content="for readers alone", data='{"place":"Rome <b>"}'))
    operator(client, "view_feed")
    page = text_of(client, inspector_of(READER))
    assert 'id="entries-table"' in page
    assert "for readers alone" not in page
    assert "place" not in page
    permissions = Permission.objects.filter(codename__in=("view_feed", "view_post"))
    User.objects.get(username="operator").user_permissions.set(permissions)
    page = text_of(client, inspector_of(READER))
    assert "for readers alone" in page
    assert "Rome &lt;b&gt;" in page


def test_who_may_not_look_sees_nothing(client: Client) -> None:
    operator(client, "view_post")
    assert client.get(inspector_of(READER)).status_code == 403
    assert client.post(inspector_of(READER), {"action": "verify"}).status_code == 403


def test_an_action_needs_the_token_of_the_form(admin_client: Client) -> None:
    careful = Client(enforce_csrf_checks=True)
    careful.cookies = admin_client.cookies
    assert careful.post(inspector_of(READER), {"action": "drop"}).status_code == 403


def test_a_search_for_a_user_opens_the_inspector(admin_client: Client) -> None:
    assert admin_client.get("/admin/feeds/feed/", {"q": " 77 "}).headers[
        "Location"
    ] == inspector_of(77)
    assert context_of(admin_client, inspector_of(77))["inspection"].feed is None
    for nobody in ("0", str(MAX_ID + 1), "x"):
        assert admin_client.get("/admin/feeds/feed/", {"q": nobody}).status_code == 200


def test_content_cannot_inject_markup(admin_client: Client) -> None:
    apply(PostCreatedFactory(content="<script>alert(1)</script>"))
    assert "<script>alert" not in text_of(admin_client, inspector_of(READER))


def test_follows_are_found_from_both_ends_and_as_a_pair(admin_client: Client) -> None:
    url = "/admin/feeds/feed/follows/"
    assert [
        entry["users"] for entry in context_of(admin_client, f"{url}?user={READER}")["lists"]
    ] == [[1], [], [], []]
    assert [entry["users"] for entry in context_of(admin_client, f"{url}?user=1")["lists"]] == [
        [],
        [READER],
        [],
        [],
    ]
    apply(UserUnfollowedFactory())
    rows = rows_of(text_of(admin_client, f"{url}?user={READER}&other=1"), "pair-table")
    assert [row[:3] for row in rows] == [
        ["2", "1", "no longer follows"],
        ["1", "2", "never followed"],
    ]
    assert "is a number" in text_of(admin_client, f"{url}?user=x")


def test_who_is_muted_is_in_a_list_and_in_the_state_of_the_pair(admin_client: Client) -> None:
    url = "/admin/feeds/feed/follows/"
    apply(UserMutedFactory(user_id=READER, muted_id=1), UserMutedFactory(user_id=1, muted_id=9))
    lists = context_of(admin_client, f"{url}?user={READER}")["lists"]
    assert {entry["name"]: entry["users"] for entry in lists}["muted"] == [1]
    rows = rows_of(text_of(admin_client, f"{url}?user={READER}&other=1"), "pair-table")
    assert [row[2] for row in rows] == ["follows, mutes", "never followed"]
    rows = rows_of(text_of(admin_client, f"{url}?user=1&other=9"), "pair-table")
    assert [row[2] for row in rows] == ["never followed, mutes", "never followed"]


def test_who_is_blocked_is_in_a_list_and_in_the_state_of_the_pair(admin_client: Client) -> None:
    url = "/admin/feeds/feed/follows/"
    apply(UserBlockedFactory(blocker_id=1, blocked_id=READER), UserFollowedFactory())
    lists = context_of(admin_client, f"{url}?user=1")["lists"]
    assert {entry["name"]: entry["users"] for entry in lists}["blocked"] == [READER]
    rows = rows_of(text_of(admin_client, f"{url}?user={READER}&other=1"), "pair-table")
    assert [row[2] for row in rows] == ["would follow but for a block", "never followed, blocks"]


def test_follows_are_paged_by_id(admin_client: Client) -> None:
    follow_all(range(10, 160), 5)
    url, seen = "?user=5", []
    while url:
        followers = context_of(admin_client, f"/admin/feeds/feed/follows/{url}")["lists"][1]
        seen += followers["users"]
        url = followers["more"]
    assert seen == list(range(159, 9, -1))


def test_one_statement_hence_one_snapshot_serves_the_comparison(
    django_assert_num_queries: Any,
) -> None:
    posts(5)
    with django_assert_num_queries(1):
        inspector._compare(READER)


def test_the_page_has_a_ticket_to_the_live_feed_of_this_user_alone(
    client: Client, settings: Settings
) -> None:
    newest = post()
    page = context_of(operator(client, "view_feed"), inspector_of(READER))["inspection"]
    address = urlsplit(page.live_address)
    query = parse_qs(address.query)
    assert (address.path, query["since"]) == (f"/feeds/{READER}/live", [str(newest)])
    [ticket] = query["ticket"]
    assert live_tickets.expires_at(ticket, READER)
    assert live_tickets.expires_at(ticket, READER + 1) is None
    assert live_tickets.expires_at(ticket + "x", READER) is None
    settings.SECRET_KEY = "another" * 10
    assert live_tickets.expires_at(ticket, READER) is None


def test_without_the_event_loop_the_page_offers_no_live_feed(
    client: Client, settings: Settings
) -> None:
    user = operator(client, "view_feed")
    assert b"live.js" in user.get(inspector_of(READER)).content
    settings.API_FRONT = False
    page = user.get(inspector_of(READER)).content
    assert b"live.js" not in page
    assert b"ticket" not in page
