"""Requests to the admin that no page of ours makes: refused or survived, never an error of ours,
never JSON.

`HOSTILE_REQUESTS=10000` tries more of them.
"""

import io
import logging
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from posts.models import Post
from tests.admin import hostile
from tests.eventbus.dead_letter_factories import an_entry

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = int(os.environ.get("HOSTILE_REQUESTS", "1500"))
ENTRIES, USERS = "/admin/eventbus/deadletter/", "/admin/auth/user/"
LINE_CHARS = 1_000


@pytest.fixture
def boss(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("boss"))
    client.raise_request_exception = False
    an_entry()
    return client


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Return what is written to the log, as it is written in production."""
    [stderr] = [handler for handler in logging.getLogger().handlers if handler.name == "stderr"]
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(stderr.formatter)
    for each in stderr.filters:
        handler.addFilter(each)
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


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


def problem_with(request: hostile.Hostile, answer: Any, lines: list[str]) -> str:
    """Return what is wrong with an answer and what it left in the log, or nothing."""
    kind = answer.headers.get("Content-Type", "")
    if answer.status_code >= 500:
        return f"an error of ours, {answer.status_code}"
    if request.is_for_a_page and kind.startswith("application/json"):
        return f"JSON for a person, {answer.status_code}"
    if len(lines) > 1:
        return f"{len(lines)} lines in the log"
    if any(len(line) > LINE_CHARS for line in lines):
        return "a long line in the log"
    return ""


def test_many_hostile_requests_are_no_error_of_ours_and_leave_no_more_than_a_line_each(
    boss: Client, log: io.StringIO
) -> None:
    dice = random.Random(7)
    user = User.objects.get()
    problems = []
    for _ in range(COUNT):
        request = hostile.draw(dice)
        answer = request.send(boss)
        if problem := problem_with(request, answer, log.getvalue().splitlines()):
            problems.append((problem, request, log.getvalue()[-3_000:]))
        log.seek(0)
        log.truncate()
        if not User.objects.filter(pk=user.pk, is_active=True).exists():
            user = User.objects.create_superuser("boss")
        if answer.status_code in (302, 429) or "sessionid" not in boss.cookies:
            boss.force_login(user)
    assert not problems, (len(problems), problems[0])
    assert not Post.objects.exists()
