"""What the environment may say, and the one sentence for what it may not."""

import os
import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured

from feedsite import environment

OWN_SERVERS = {
    "DATABASE_URL": "postgresql://user:secret@localhost/feed",
    "KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
    "DJANGO_SECRET_KEY": "s" * 50,
    "JWT_SIGNING_KEY": "s" * 50,
}
SASL = {
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "user",
    "KAFKA_SASL_PASSWORD": "secret",
}


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in [*OWN_SERVERS, *SASL, "KAFKA_SESSION_TIMEOUT_MS", "KAFKA_FETCH_WAIT_MS"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**OWN_SERVERS, **variables}.items():
        monkeypatch.setenv(name, value)
    environment.read()


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"KAFKA_MAX_POLL_INTERVAL_MS": "10000"},
            "MAX_POLL_INTERVAL_MS must not be below KAFKA_SESSION_TIMEOUT_MS",
        ),
        ({"API_LOOKUP_RATE": "99/s"}, "API_LOOKUP_RATE must not be below 100"),
        ({"API_LOOKUP_RATE": "many"}, "Must be a number a time, such as 60/min"),
        ({"KAFKA_LINGER_MS": "5000"}, "KAFKA_PUBLISH_TIMEOUT_MS must be above KAFKA_LINGER_MS"),
        (
            {"PROCESSED_EVENTS_DAYS": "7"},
            "PROCESSED_EVENTS_DAYS must exceed KAFKA_RETENTION_HOURS by a day",
        ),
        (
            {"IDEMPOTENCY_KEY_DAYS": "9"},
            "IDEMPOTENCY_KEY_DAYS must not exceed PROCESSED_EVENTS_DAYS",
        ),
        (
            {"DEAD_LETTERS_DAYS": "1"},
            "DEAD_LETTERS_DAYS must be 0 or not below PROCESSED_EVENTS_DAYS",
        ),
        ({"FEED_BATCH_MAX_EVENTS": "2501"}, "times FEED_BATCH_MAX_EVENTS must not exceed 5,000"),
        ({"KAFKA_FETCH_WAIT_MS": "60000"}, "KAFKA_FETCH_WAIT_MS"),
        (
            {"KAFKA_SECURITY_PROTOCOL": "sasl"},
            "Must be one of: PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL",
        ),
        ({"KAFKA_SASL_MECHANISM": "GSSAPI"}, "Must be one of: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
            "set KAFKA_SASL_MECHANISM and KAFKA_SASL_USERNAME and",
        ),
        (SASL, "without KAFKA_SECURITY_PROTOCOL=SASL_SSL or SASL_PLAINTEXT it is not used"),
        ({"KAFKA_SSL_CA_LOCATION": "/no/such/file"}, "names /no/such/file, which does not exist"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=sentence):
        read(monkeypatch, **variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {**SASL, "KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
        {
            **SASL,
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        },
        {"KAFKA_RETENTION_HOURS": "1"},
        {"API_LOOKUP_RATE": "100/s"},
        {"FEED_BATCH_MAX_EVENTS": "5000", "FEED_FANOUT_LANES": "1"},
        {"KAFKA_RETENTION_HOURS": "720", "DEAD_LETTERS_DAYS": "31"},
        {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CA_LOCATION": "/"},
        {"CORS_ALLOWED_ORIGINS": "https://app.example,http://localhost:5173,http://[::1]:8080"},
    ],
)
def test_what_can_work_is_taken(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    read(monkeypatch, **variables)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "app.example",
        "https://app.example/",
        "https://app.example/page",
        "https://App.example",
        "https://app.example:443",
        "http://app.example:80",
        "https://user@app.example",
        "https://*.example",
        "ftp://app.example",
        "https://app.example https://b.example",
        "https://good.example,https://",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(
    monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"CORS_ALLOWED_ORIGINS has .*which is no origin"
    ):
        read(monkeypatch, CORS_ALLOWED_ORIGINS=origin)


@pytest.mark.parametrize(
    "url",
    [
        "secret",
        "secret://localhost/feed",
        "mysql://user:secret@localhost/feed",
        "postgresql://user:secret@localhost",
        "postgresql://user:secret@localhost:port/feed",
        "postgresql://user:sec/ret@localhost:5432/feed",
        "postgresql://user:secret@[localhost/feed",
        "postgresql://user:secret@localhost/feed?no_such_parameter=1",
    ],
)
def test_an_address_of_postgresql_that_is_none_is_refused_without_showing_its_password(
    url: str,
) -> None:
    with pytest.raises(
        ImproperlyConfigured, match="Must be postgresql://user:password@host:port/name"
    ) as refused:
        environment.database(url)
    assert "sec" not in str(refused.value)


def test_an_address_of_postgresql_is_taken_with_its_parameters() -> None:
    parsed = environment.database(
        "postgres://user:p%40ss@localhost:6543/feed?sslmode=require&connect_timeout=2"
    )
    assert (parsed["HOST"], parsed["PORT"], parsed["NAME"], parsed["PASSWORD"]) == (
        "localhost",
        6543,
        "feed",
        "p@ss",
    )
    assert parsed["OPTIONS"] == {"sslmode": "require", "connect_timeout": 2}


def test_parameters_of_the_address_add_to_ours_and_win() -> None:
    address = f"{OWN_SERVERS['DATABASE_URL']}?connect_timeout=2&options=-c%20lock_timeout%3D1"
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "from feedsite import settings; print(settings.DATABASES['default']['OPTIONS'])",
        ],
        env={**os.environ, **OWN_SERVERS, "DATABASE_URL": address},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "'connect_timeout': 2" in shown
    assert "-c lock_timeout=30000" in shown
    assert "-c lock_timeout=1'" in shown
