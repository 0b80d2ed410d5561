"""Where the addresses lead that people try, and what the pages for people come with."""

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from feedsite import errors
from feedsite.middleware import DOCS_POLICY, POLICY


@pytest.mark.parametrize(
    ("tried", "found"),
    [
        ("/", "/docs/"),
        ("/docs", "/docs/"),
        ("/schema?format=json", "/schema/?format=json"),
        ("/admin", "/admin/"),
        ("/favicon.ico", "/static/feedsite/favicon.svg"),
    ],
)
def test_an_address_leads_somewhere(client: Client, tried: str, found: str) -> None:
    answer = client.get(tried)
    assert (answer.status_code, answer.headers["Location"]) == (302, found)


def test_there_is_a_favicon(client: Client) -> None:
    assert client.get("/static/feedsite/favicon.svg").headers["Content-Type"] == "image/svg+xml"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_is_a_get(path: str) -> None:
    answer = Client(enforce_csrf_checks=True).post(path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD"


def test_pages_run_no_script_of_others_and_share_no_window(client: Client) -> None:
    for path, policy in (("/admin/login/", POLICY), ("/docs/", DOCS_POLICY)):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["Content-Security-Policy"] == policy
        assert "'unsafe-inline'" not in policy.partition("style-src")[0]
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "<script>" not in answer.content.decode()
    assert "Content-Security-Policy" not in client.get("/posts/1").headers


@pytest.mark.django_db
def test_a_session_lasts_a_working_day(client: Client) -> None:
    client.force_login(User.objects.create_superuser("boss"))
    assert client.session.get_expiry_age() == 8 * 3_600
    assert client.session.get_expire_at_browser_close()


@pytest.mark.django_db
def test_errors_are_pages_to_people_and_json_to_programs(client: Client) -> None:
    client.force_login(User.objects.create_superuser("boss"))
    assert "<h1>There is nothing here</h1>" in client.get("/admin/nope/").content.decode()
    assert client.get("/nope").json()["code"] == "not_found"
    careful = Client(enforce_csrf_checks=True)
    careful.cookies = client.cookies
    refused = careful.post(reverse("admin:logout"))
    assert refused.status_code == 403
    assert "<h1>Not allowed</h1>" in refused.content.decode()


def test_a_page_of_an_error_asks_no_server() -> None:
    assert "<h1>Too much was sent</h1>" in errors.page(413, "It is more than 1 kB.")
