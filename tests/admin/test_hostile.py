"""Requests to the admin that no page of ours makes: refused or survived, never an error of ours,
never JSON.

`HOSTILE_REQUESTS=10000` tries more of them.
"""

import os
import random
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from posts.models import Post
from tests.eventbus.dead_letter_factories import an_entry

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = int(os.environ.get("HOSTILE_REQUESTS", "250"))
ENTRIES, GROUPS = "/admin/eventbus/deadletter/", "/admin/eventbus/deadlettergroup/"
USERS = "/admin/auth/user/"
LISTS = [
    ENTRIES,
    GROUPS,
    USERS,
    "/admin/auth/group/",
    "/admin/eventbus/processedevent/",
    "/admin/posts/post/",
    "/admin/feeds/feed/",
]
OTHERS = ["/admin/", "/admin/login/", "/admin/pipeline/", "/admin/feeds/feed/follows/"]
BENEATH = ["{}/change/", "{}/delete/", "{}/history/", "{}/inspect/", "add/", "{}/password/", "{}"]
VALUES = [
    "\0",
    "a\0b",
    "x",
    "",
    "0",
    "-1",
    "1e9",
    "9" * 30,
    str(2**63),
    "٣",
    "²",
    "(",
    "[a",
    "' OR 1=1 --",
    "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    "null",
    "1,2",
    "1,x",
    "True",
    "9999-99-99",
    "\r\nX: y",
    "x" * 5_000,
]
PARAMETERS = [
    *("q", "p", "o", "e", "all", "_popup", "_to_field", "_facets", "_changelist_filters", "next"),
    *("state", "type", "error", "group", "state__exact", "group__id__exact", "id__lt", "pk__lt"),
    *("value__exact", "event_id__lt", "event_id__range", "user_id__lt", "failures__id", "group__x"),
    *("is_staff__exact", "username__regex", "email__iregex", "last_login__year", "id__in"),
    *("date_joined__gt", "user_permissions__id__exact", "password__startswith", "user", "other"),
    *("following_up_to", "action", "_selected_action", "select_across", "index", "confirmed"),
    *(
        "reason",
        "job",
        "parked",
        "from_entry",
        "username",
        "password",
        "_save",
        "is_active__isnull",
    ),
]
ACTIONS = ["replay_selected", "discard_selected", "delete_selected", "x", ""]


@pytest.fixture
def boss(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("boss"))
    client.raise_request_exception = False
    an_entry()
    return client


def assert_survived(answer: object, *request: object) -> None:
    assert answer.status_code < 500, request  # type: ignore[attr-defined]
    kind = answer.headers.get("Content-Type", "")  # type: ignore[attr-defined]
    assert not kind.startswith("application/json") or "autocomplete" in str(request), request


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (f"{ENTRIES}?state__exact=%00", None),
        (f"{ENTRIES}?state=%00", None),
        (f"{ENTRIES}?value__exact=abc", None),
        (f"{ENTRIES}?headers__a__b=abc", None),
        (f"{USERS}?username__regex=(", None),
        (f"{ENTRIES}%00/change/", None),
        (ENTRIES, {"action": "replay_selected", "_selected_action": "x"}),
        (USERS, {"action": "delete_selected", "_selected_action": "x"}),
        (ENTRIES, {"action": "discard_selected", "_selected_action": "1", "reason": "\0"}),
        (ENTRIES, {"action": "discard_selected", "_selected_action": ["1"] * 5_000}),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_page(
    boss: Client, path: str, data: dict[str, object] | None
) -> None:
    answer = boss.get(path) if data is None else boss.post(path, data)
    assert answer.status_code == 400
    assert "<h1>This cannot be answered</h1>" in answer.content.decode()


def test_a_session_cookie_with_a_nul_is_refused(boss: Client) -> None:
    answer = boss.get("/admin/", HTTP_COOKIE='sessionid="a\\000b"')
    assert answer.status_code == 400
    assert "<h1>This cannot be answered</h1>" in answer.content.decode()


def test_a_job_is_of_one_action_and_one_operator(boss: Client) -> None:
    chosen = {"select_across": "1", "_selected_action": "1"}
    asked = boss.post(ENTRIES, {"action": "replay_selected", **chosen})
    context: Any = asked.context_data
    token = context["job_token"]
    forged = {"action": "discard_selected", "confirmed": "yes", "reason": "x", "job": token}
    assert boss.post(ENTRIES, {**forged, **chosen}).status_code == 400
    assert boss.post(ENTRIES, {**forged, **chosen, "job": "x"}).status_code == 400


def test_none_of_many_hostile_requests_is_an_error_of_ours(boss: Client) -> None:
    dice = random.Random(7)
    user = User.objects.get()
    for _ in range(COUNT):
        path = dice.choice(LISTS + OTHERS)
        if path in LISTS and dice.random() < 0.4:
            path += dice.choice(BENEATH).format(
                dice.choice(["1", "x", "%00", "9" * 30, "_00", "/"])
            )
        query = {dice.choice(PARAMETERS): dice.choice(VALUES) for _ in range(dice.randint(0, 3))}
        if dice.random() < 0.5:
            answer = boss.get(path, query)
        else:
            body = {dice.choice(PARAMETERS): dice.choice(VALUES) for _ in range(3)}
            if dice.random() < 0.7:
                body |= {"action": dice.choice(ACTIONS), "_selected_action": dice.choice("12x")}
            if dice.random() < 0.5:
                body |= {"confirmed": "yes"}
            answer = boss.post(path, body, query_params=query)
        assert_survived(answer, path, query, answer.request)
        if not User.objects.filter(pk=user.pk, is_active=True).exists():
            user = User.objects.create_superuser("boss")
        if answer.status_code in (302, 429):
            boss.force_login(user)
    assert not Post.objects.exists()
