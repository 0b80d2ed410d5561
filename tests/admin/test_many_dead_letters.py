"""Dead letters by the hundred thousand: every page takes a bounded part of them, and actions go on
in parts.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from pytest_django import DjangoDbBlocker

from eventbus import admin, bulk
from eventbus.deadletters import replay
from eventbus.models import DeadLetter, DeadLetterGroup
from eventbus.watch.pipeline import COUNTED
from tests.admin.pages import context_of, text_of
from tests.large_tables import nodes, plans_of

pytestmark = pytest.mark.django_db

ENTRIES, GROUPS = "/admin/eventbus/deadletter/", "/admin/eventbus/deadlettergroup/"
COUNT = 200_000
LARGE = COUNT // 2  # in the first group

# Without ANALYZE: nothing is known of what has just come.
FILL = """
INSERT INTO dead_letter_groups (fingerprint, event_type, exception, message, failures, first_seen, last_seen)
    SELECT n, CASE WHEN n = 2 THEN '' ELSE 'post.created' END,
        CASE n % 2 WHEN 0 THEN 'app.InvalidEvent' ELSE 'app.Refused' END, 'field ' || n || ' is wrong', 7, now(), now()
    FROM generate_series(1, 20) AS n;
INSERT INTO dead_letters (
    group_id, state, topic, key, value, headers, event_id, event_type, attempts, replays, discard_reason, last_failed_at
)
    SELECT (SELECT min(id) FROM dead_letter_groups) + CASE WHEN n <= 100000 THEN 0 ELSE n % 19 + 1 END,
        CASE WHEN n % 5 = 0 THEN 'resolved' ELSE 'open' END, 'feed-events', '7', repeat('x', 200)::bytea, '[]',
        200000 + n, CASE WHEN n > 100000 AND n % 19 = 0 THEN '' ELSE 'post.created' END, 1, 0, '',
        now() - n * interval '0.3 s'
    FROM generate_series(1, 200000) AS n;
"""


@pytest.fixture(scope="module", autouse=True)
def many_dead_letters(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(FILL)
    try:
        yield
    finally:
        with django_db_blocker.unblock():
            with connection.cursor() as cursor:
                cursor.execute("TRUNCATE dead_letters, dead_letter_groups CASCADE")
            connection.close()


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("boss"))
    return client


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a request do no more than one batch."""
    monkeypatch.setattr(bulk, "PART_SECONDS", 0.0)


def rows_taken(client: Client, url: str) -> int:
    """Return how many rows of a dead letter the page takes out of PostgreSQL, and tell its
    sorts.
    """
    plans = [plan for plan in plans_of(lambda: client.get(url)) if _is_of_entries(plan)]
    assert plans
    return max(int(plan["Actual Rows"]) for plan in plans)


def _is_of_entries(plan: dict[str, Any]) -> bool:
    return any(node.get("Relation Name") == "dead_letters" for node in nodes(plan))


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?p=1000",
        "?state=waiting",
        "?state=open&type=post.created",
        "?error=app.Refused",
        "?all=",
    ],
)
def test_a_page_of_entries_takes_a_page_of_rows(staff: Client, query: str) -> None:
    assert rows_taken(staff, ENTRIES + query) <= 101


def test_the_newest_are_found_by_index(staff: Client) -> None:
    plans = plans_of(lambda: staff.get(ENTRIES))
    [newest] = [plan for plan in plans if plan["Node Type"] == "Limit" and _is_of_entries(plan)]
    assert {node.get("Index Name") for node in nodes(newest)} == {None, "dead_letters_by_failure"}


def test_of_a_groups_entries_no_more_are_counted_than_shown(staff: Client) -> None:
    plans = plans_of(lambda: staff.get(GROUPS))
    limits = [
        node
        for plan in plans
        if _is_of_entries(plan)
        for node in nodes(plan)
        if "Limit" in node["Node Type"]
    ]
    assert max(int(node["Actual Rows"]) for node in limits) <= admin.HISTORY_FAILURES
    page = text_of(staff, GROUPS)
    assert f'field-unresolved">{COUNTED:,}+<' in page
    assert re.search(r"<title>50000 failures in 24 hours, at most 12\d\d\d an hour</title>", page)


def test_entries_are_found_by_state_type_error_group_and_id(staff: Client) -> None:
    def found(query: str) -> int:
        count: int = context_of(staff, ENTRIES + query)["cl"].result_count
        return count

    first = DeadLetterGroup.objects.earliest("id")
    assert found("?state=waiting") == COUNT * 4 // 5
    assert found("?state=resolved") == COUNT // 5
    assert found("?type=undecodable") == DeadLetter.objects.filter(event_type="").count() > 5_000
    assert found("?error=app.Refused") > LARGE
    assert found(f"?group={first.pk}") == LARGE
    assert found("?group=x") == found("?group=9999999") == found("?state=y") == 0
    assert found(f"?q={COUNT + 77}") == 1
    assert found("?q=x") == 0


def test_groups_of_one_cause_are_told_apart(staff: Client) -> None:
    names = [str(group) for group in DeadLetterGroup.objects.all()]
    assert len(set(names)) == 20
    assert re.fullmatch(r"post.created: Refused #\d+: field 1 is wrong", names[0])


def answers_of(client: Client, url: str, data: dict[str, Any]) -> Iterator[Any]:
    """Ask as the page that comes back asks, until there is none but the list."""
    while True:
        answer: Any = client.post(url, data)
        yield answer
        if answer.status_code != 200:
            return
        names = ("select_across", "action", "selected", "job_token")
        across, action, selected, job = (answer.context_data[name] for name in names)
        data = {**data, "select_across": across, "action": action, "confirmed": "yes"}
        data |= {"_selected_action": selected, "job": job}


def test_all_that_a_filter_finds_is_discarded_in_parts(staff: Client, slow: None) -> None:
    url = f"{ENTRIES}?type=undecodable"
    matching = DeadLetter.objects.filter(event_type="")
    count = matching.unresolved().count()
    picked = matching.values_list("id", flat=True)[:100]
    data = {"action": "discard_selected", "select_across": "1", "_selected_action": list(picked)}
    asking, *parts, end = answers_of(staff, url, {**data, "reason": "known"})
    assert f"Discard {count:,} dead letters?" in asking.content.decode()
    assert asking.content.decode().count('name="_selected_action"') <= 100
    assert len(parts) == count // replay.DISCARDED_AT_ONCE > 0
    assert "<progress" in parts[0].content.decode()
    assert end.headers["Location"] == url
    assert f"{count} discarded." in text_of(staff, url)
    assert matching.filter(state="discarded", discard_reason="known").count() == count
    assert DeadLetter.objects.filter(state="discarded").count() == count
    [line] = LogEntry.objects.all()
    assert line.change_message == f"Discarded {count} dead letters: known"
    assert line.object_repr == f"all of {url}"


def test_what_comes_after_the_question_is_left_alone(staff: Client) -> None:
    group = DeadLetterGroup.objects.filter(event_type="").get()
    data = {"action": "discard_selected", "_selected_action": [group.pk], "reason": "known"}
    answers = answers_of(staff, GROUPS, data)
    next(answers)
    late = group.entries.latest("id")
    late.pk = None
    late.state = DeadLetter.State.OPEN
    late.save()
    list(answers)
    assert list(DeadLetter.objects.filter(group=group).unresolved()) == [late]
