"""Lists and searches on tables large enough to matter: by key, a page's worth of rows, nothing
counted.
"""

import re
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoDbBlocker

from eventbus.models import ProcessedEvent
from feeds import verification
from posts.models import Post
from tests.admin.pages import context_of, inspector_of, text_of
from tests.large_tables import FILL, filled, plans_of, scans

pytestmark = pytest.mark.django_db

LARGE = {"posts", "follows", "feeds", "feed_entries", "processed_events"}


@pytest.fixture(scope="module")
def large_tables(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with filled(django_db_blocker, FILL):
        yield


@pytest.fixture
def staff(client: Client, large_tables: None) -> Client:
    client.force_login(User.objects.create_superuser("boss"))
    return client


def assert_bounded(client: Client, url: str, rows: int = 101) -> list[str]:
    """Assert that no query of the page scans a large table or takes more than `rows` rows out of
    one; return those.
    """
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    on_large = [
        query["sql"]
        for query in captured.captured_queries
        if LARGE & set(re.findall(r"\w+", query["sql"]))
    ]
    for plan in plans_of(lambda: client.get(url)):
        touched = [scan for scan in scans(plan) if scan[1] in LARGE]
        assert [scan for scan in touched if scan[0] == "Seq Scan"] == [], (url, plan)
        assert not touched or plan["Actual Rows"] <= rows, (url, plan)
    assert on_large
    return on_large


LISTS = [
    "/admin/posts/post/",
    "/admin/posts/post/?id__lt=150000",
    "/admin/posts/post/?q=199999",
    "/admin/posts/post/?q=author:7",
    "/admin/posts/post/?o=3.-4",
    "/admin/posts/post/?p=1000",
    "/admin/posts/post/?all=",
    "/admin/posts/post/77/change/",
    "/admin/eventbus/processedevent/",
    "/admin/eventbus/processedevent/?event_id__lt=50000",
    "/admin/eventbus/processedevent/?q=5",
    "/admin/eventbus/processedevent/5/change/",
    "/admin/feeds/feed/",
    "/admin/feeds/feed/?user_id__lt=4000",
    "/admin/feeds/feed/follows/?user=7",
    "/admin/feeds/feed/follows/?user=9000&following_up_to=500",
    "/admin/feeds/feed/follows/?user=9000&other=5",
]


def test_lists_and_searches_are_bounded(staff: Client) -> None:
    for url in LISTS:
        queries = assert_bounded(staff, url)
        assert [sql for sql in queries if "COUNT(" in sql.upper() or "OFFSET" in sql] == []


def test_the_inspector_is_bounded_also_for_who_follows_a_thousand(staff: Client) -> None:
    assert_bounded(staff, inspector_of(77), rows=200)
    assert_bounded(staff, inspector_of(9000), rows=1_000)


def test_verifying_one_user_scans_no_large_table(large_tables: None) -> None:
    for plan in plans_of(lambda: verification.verify([77])):
        assert [scan for scan in scans(plan) if scan[0] == "Seq Scan" and scan[1] in LARGE] == []


def test_a_search_finds_by_id_alone(staff: Client) -> None:
    def found(url: str) -> list[int]:
        return [row.pk for row in context_of(staff, url)["cl"].result_list]

    assert found("/admin/posts/post/?q=77") == [77]
    assert found("/admin/posts/post/?q=post") == found("/admin/posts/post/?q=-1") == []
    assert found(f"/admin/posts/post/?q={2**63}") == []
    assert found("/admin/eventbus/processedevent/?q=99") == [99]
    Post.objects.filter(id=6).update(deleted_event_id=1)
    by_author = found("/admin/posts/post/?q=author:7")
    assert by_author == sorted(by_author, reverse=True)
    assert len(by_author) == 99  # of its hundred posts one is deleted
    assert by_author[0] == 198006


def test_browsing_goes_through_every_row_once(staff: Client) -> None:
    ProcessedEvent.objects.filter(event_id__gt=250).delete()
    url, seen = "", []
    while True:
        changelist = context_of(staff, f"/admin/eventbus/processedevent/{url}")["cl"]
        seen += [row.pk for row in changelist.result_list]
        if not changelist.older_link:
            break
        url = changelist.older_link
    assert seen == list(range(250, 0, -1))
    assert "Newest" in text_of(staff, f"/admin/eventbus/processedevent/{url}")


def test_a_filter_that_no_index_serves_is_refused(admin_client: Client) -> None:
    for lookup in ("content__contains=x", "created_at__gt=2020-01-01", "author_id=7", "fanout=0"):
        assert admin_client.get(f"/admin/posts/post/?{lookup}").status_code == 400
