"""Guessing passwords at the admin's login: five tries, then a wait, and each try in the log."""

import json
import logging
from datetime import timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

pytestmark = pytest.mark.django_db(transaction=True)

LOGIN = "/admin/login/"
PASSWORD = "right-Password-7"


@pytest.fixture(autouse=True)
def _operators(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # quick
    for name in ("operator", "colleague"):
        User.objects.create_superuser(name, password=PASSWORD)


def attempt(password: str, username: str = "operator", **meta: str) -> Any:
    form = {"username": username, "password": password, "next": "/admin/"}
    return Client().post(LOGIN, form, **meta)  # type: ignore[arg-type]


def guess(times: int, **meta: str) -> list[int]:
    return [attempt(f"wrong-{n}", **meta).status_code for n in range(times)]


def is_let_in(answer: Any) -> bool:
    return bool(answer.status_code == 302 and answer.headers["Location"] == "/admin/")


def test_after_five_failures_even_the_right_password_is_refused_for_a_while() -> None:
    assert guess(7) == [200] * 4 + [429] * 3
    refused = attempt(PASSWORD)
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "300"
    assert "Try again in 5 minutes." in refused.content.decode()
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=5, seconds=1))
    assert is_let_in(attempt(PASSWORD))


def test_others_are_not_locked_out_with_them() -> None:
    guess(5)
    assert is_let_in(attempt(PASSWORD, username="colleague"))
    assert is_let_in(attempt(PASSWORD, REMOTE_ADDR="192.0.2.7"))


def test_a_success_starts_the_count_anew() -> None:
    guess(4)
    assert is_let_in(attempt(PASSWORD))
    assert guess(4) == [200] * 4


def test_waiting_is_not_made_longer_by_trying() -> None:
    guess(5)
    begun = AccessAttempt.objects.get().attempt_time
    guess(3)
    assert AccessAttempt.objects.get().attempt_time == begun


def test_the_address_is_not_what_a_client_says() -> None:
    assert 429 in [guess(1, HTTP_X_FORWARDED_FOR=f"192.0.2.{n}")[0] for n in range(6)]


def test_behind_a_proxy_the_address_is_what_the_proxy_adds(settings: Settings) -> None:
    settings.TRUSTED_PROXIES = 1
    said = [f"198.51.100.{n}, 192.0.2.1" for n in range(6)]
    assert 429 in [guess(1, HTTP_X_FORWARDED_FOR=forwarded)[0] for forwarded in said]
    assert is_let_in(attempt(PASSWORD, HTTP_X_FORWARDED_FOR="192.0.2.1, 192.0.2.2"))
    for unusable in ("", "unknown", "192.0.2.1:80", ",", "\u00ff"):
        assert is_let_in(attempt(PASSWORD, HTTP_X_FORWARDED_FOR=unusable))


def test_one_network_of_ipv6_is_one_address() -> None:
    assert 429 in [guess(1, REMOTE_ADDR=f"2001:db8:0:1::{n}")[0] for n in range(6)]
    assert is_let_in(attempt(PASSWORD, REMOTE_ADDR="2001:db8:0:2::1"))


def test_each_failure_is_one_line_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        guess(6)
        attempt(PASSWORD, username="colleague")
    told = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    lines = [line for line in told if line["event"].startswith("login_")]
    assert [line["event"] for line in lines] == ["login_failed"] * 4 + [
        "login_locked_out",
        "login_refused",
    ]
    assert {line["username"] for line in lines} == {"operator"}
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert [line["failures"] for line in lines] == [1, 2, 3, 4, 5, None]
    whole = "\n".join(record.getMessage() for record in caplog.records)
    assert "wrong-" not in whole
    assert PASSWORD not in whole


def test_what_is_counted_holds_no_password() -> None:
    guess(2)
    kept = json.dumps(list(AccessAttempt.objects.values()), default=str)
    assert "wrong-" not in kept


def test_hostile_names_are_no_error_of_ours() -> None:
    for name in ("", "\0", "x" * 10_000, "\x1b[31m", "' OR 1=1 --", "\u202e"):
        assert attempt("wrong", username=name).status_code in (200, 400, 429)


def test_the_api_asks_nothing_of_it(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_num_queries(0):
        assert Client().get("/feeds/1").status_code == 401
        assert Client().get("/healthz").status_code == 200
