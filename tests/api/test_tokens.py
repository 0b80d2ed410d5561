"""Who a token says is asking, and the keys that verify it."""

import base64
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pytest_django import Settings

from feedsite import authentication, keys
from feedsite.authentication import issue_token, principal_of, principal_without_waiting
from posts.principal import Principal
from tests.api.identity import Provider
from tests.api.server import Current
from tests.api.test_api import told
from tests.e2e.system import environment

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("current_api")]

INVALID = (401, "invalid_token")


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_kept", {})
    monkeypatch.setattr(keys, "_sets", {})


def status_with(token: str) -> tuple[int, str]:
    answer = Current.api.anonymous(Authorization=f"Bearer {token}").get("/feeds/1")
    return (200, "") if answer.status_code == 200 else told(answer)


def test_no_token_is_a_401_that_says_how() -> None:
    answer = Current.api.anonymous().get("/feeds/1")
    assert told(answer) == (401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_bad_tokens_are_refused(settings: Settings) -> None:
    sign = partial(jwt.encode, key=settings.JWT_SIGNING_KEY, algorithm="HS256")
    soon = int(time.time()) + 60
    assert status_with(sign({"sub": "1", "exp": soon})) == (200, "")
    assert status_with(sign({"sub": "1", "exp": soon - 120})) == (401, "token_expired")
    assert status_with(sign({"sub": "1"})) == (401, "invalid_token")
    assert status_with(sign({"exp": soon})) == (401, "invalid_token")
    for sub in ("0", "abc", str(2**63), "01", ""):
        assert status_with(sign({"sub": sub, "exp": soon})) == (401, "invalid_token")
    assert status_with(jwt.encode({"sub": "1", "exp": soon}, "", algorithm="none")) == (
        401,
        "invalid_token",
    )
    assert status_with(jwt.encode({"sub": "1", "exp": soon}, "k" * 32, algorithm="HS256")) == (
        401,
        "invalid_token",
    )
    assert status_with("x" * 5_000) == (401, "invalid_token")


def public_pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    return pem.decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_tokens_of_an_outside_issuer(settings: Settings, algorithm: str) -> None:
    key: Any = (
        rsa.generate_private_key(65_537, 2_048)
        if algorithm == "RS256"
        else ec.generate_private_key(ec.SECP256R1())
    )
    settings.JWT_PUBLIC_KEY = public_pem(key)
    claims = {"sub": "1", "exp": int(time.time()) + 60}
    assert status_with(jwt.encode(claims, key, algorithm=algorithm)) == (200, "")
    own = jwt.encode(claims | {"x": 1}, settings.JWT_SIGNING_KEY, algorithm="HS256")
    assert status_with(own) == (401, "invalid_token")
    settings.JWT_SIGNING_KEY = ""
    with pytest.raises(ValueError, match="issuer"):
        issue_token(1, "", 60)


# What a token may hold ----------------------------------------------------------------------------


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def signed(settings: Settings, payload: bytes, header: bytes = b'{"alg":"HS256"}') -> str:
    """Return a token with these bytes in it, which no library would write."""
    signing_input = f"{encoded(header)}.{encoded(payload)}"
    algorithm = jwt.get_algorithm_by_name("HS256")
    signature = algorithm.sign(
        signing_input.encode(), algorithm.prepare_key(settings.JWT_SIGNING_KEY)
    )
    return f"{signing_input}.{encoded(signature)}"


def claims_with(**changed: str) -> bytes:
    """Return the JSON of good claims, but for what is `changed`."""
    fields = {"sub": '"1"', "exp": str(int(time.time()) + 60)} | changed
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


ODD = [
    "null",
    "true",
    "[]",
    "{}",
    '"12"',
    '"x"',
    "NaN",
    "Infinity",
    "-Infinity",
    "-1",
    "1e999",
    "9" * 400,
]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_a_time_that_is_none_is_no_time(settings: Settings, name: str, value: str) -> None:
    status, code = status_with(signed(settings, claims_with(**{name: value})))
    assert (status, code) in (INVALID, (401, "token_expired"))


@pytest.mark.parametrize(
    "value", ["null", "true", "1", "1.0", "[1]", '{"1":1}', '"+1"', '"1 "', '"\u0661"', "9" * 400]
)
def test_a_subject_that_is_no_id_is_nobody(settings: Settings, value: str) -> None:
    assert status_with(signed(settings, claims_with(sub=value))) == INVALID


@pytest.mark.parametrize(
    "token",
    [
        "..",
        "a.b.c",
        f"{encoded(b'[' * 2_000)}.{encoded(b'{}')}.",
        f"{encoded(b'[]')}.{encoded(b'{}')}.",
        f"{encoded(b'{}')}.{encoded(b'{}')}.",
        f"""{encoded(b'{"alg":["HS256"]}')}.{encoded(b"{}")}.AAAA""",
        f"""{encoded(b'{"alg":"HS256","kid":{}}')}.{encoded(b"{}")}.AAAA""",
        f"""{encoded(b'{"alg":"HS256","crit":["x"]}')}.{encoded(b"{}")}.AAAA""",
    ],
)
def test_what_is_no_token_is_refused_and_not_an_error_of_ours(token: str) -> None:
    assert status_with(token) == INVALID
    assert principal_without_waiting(token) is None


@pytest.mark.parametrize("payload", [b"", b"[]", b"1", b"{", b"[" * 2_500, b"\xff", b'"x"'])
def test_a_well_signed_payload_that_is_no_claims_is_refused(
    settings: Settings, payload: bytes
) -> None:
    assert status_with(signed(settings, payload)) == INVALID


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ('"feeds:read other"', {"feeds:read", "other"}),
        ('["feeds:read","other"]', {"feeds:read", "other"}),
        ('["other feeds:read"]', {"other feeds:read"}),
        ('{"feeds:read":1}', set()),
        ('[["feeds:read"], 1]', set()),
        ("null", set()),
    ],
)
def test_scopes_are_words_or_entries(settings: Settings, scope: str, scopes: set[str]) -> None:
    assert principal_of(signed(settings, claims_with(scope=scope))).scopes == scopes


def test_a_list_of_one_text_smuggles_no_scope(settings: Settings) -> None:
    token = signed(settings, claims_with(scope='["other feeds:read"]'))
    answer = Current.api.anonymous(Authorization=f"Bearer {token}").get("/feeds/2")
    assert told(answer) == (403, "not_your_feed")


# What is kept -------------------------------------------------------------------------------------


def test_a_kept_token_is_not_verified_again_and_not_kept_beyond_its_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issue_token(7, "", 60)
    assert principal_without_waiting(token) == principal_of(token) == Principal(7, frozenset())
    settings.JWT_SIGNING_KEY = "another key, with which it would not be verified"
    assert principal_of(token).user_id == principal_without_waiting(token).user_id == 7  # type: ignore[union-attr]
    monkeypatch.setattr(time, "time", lambda: 2**33)
    assert principal_without_waiting(token) is None


def test_when_too_many_are_kept_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "KEPT_TOKENS", 3)
    tokens = [issue_token(user, "", 60) for user in range(1, 6)]
    for token in tokens:
        principal_of(token)
    assert list(authentication._kept) == tokens[2:]


def test_without_waiting_there_is_a_principal_or_none(settings: Settings) -> None:
    assert principal_without_waiting(issue_token(1, "a b", 60)) == Principal(
        1, frozenset({"a", "b"})
    )
    for doubtful in (
        "",
        "x",
        "x" * 5_000,
        issue_token(1, "", -60),
        signed(settings, claims_with(sub="1")),
    ):
        assert principal_without_waiting(doubtful) is None


def test_without_any_key_nobody_is_let_in(settings: Settings) -> None:
    by_empty_key = signed(settings, claims_with()).rsplit(".", 1)[0]
    algorithm = jwt.get_algorithm_by_name("HS256")
    token = f"{by_empty_key}.{encoded(algorithm.sign(by_empty_key.encode(), b''))}"
    settings.JWT_SIGNING_KEY = ""
    assert status_with(token) == (503, "keys_unavailable")
    assert principal_without_waiting(token) is None
    with pytest.raises(ValueError, match="Set JWT_SIGNING_KEY"):
        issue_token(1, "", 60)


# A key set ----------------------------------------------------------------------------------------


@pytest.fixture
def provider(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """Have tokens verified by the set of a provider, which is asked more often than in
    production.
    """
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.3)
    monkeypatch.setattr(keys, "COOLDOWN_SECONDS", 0.1)
    provider = Provider()
    settings.JWT_JWKS_URL = provider.url
    yield provider
    for key_set in keys._sets.values():
        key_set.close()
    provider.die()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "did not come to hold within 10 s"
        time.sleep(0.01)


def answers(token: str, status: int, code: str = "") -> bool:
    return status_with(token) == (status, code)


def test_tokens_by_key_set(provider: Provider) -> None:
    provider.add("k1")
    provider.add("k2", "ES256")
    assert status_with(provider.token("k1")) == (200, "")
    assert status_with(provider.token("k2", "ES256")) == (200, "")
    assert principal_without_waiting(provider.token("k1", scope="a")) == Principal(
        1, frozenset({"a"})
    )


def test_a_key_is_used_with_its_own_algorithm_alone(provider: Provider) -> None:
    provider.add("rsa")
    provider.add("curve", "ES256")
    provider.private["other"] = provider.private["rsa"]
    for key_id, algorithm, private in (
        ("curve", "RS256", "rsa"),
        ("rsa", "ES256", "curve"),
        ("rsa", "RS512", "rsa"),
    ):
        forged = jwt.encode(
            {"sub": "1", "exp": int(time.time()) + 60},
            provider.private[private],
            algorithm=algorithm,
            headers={"kid": key_id},
        )
        assert status_with(forged) == INVALID
    by_public_key = jwt.encode(
        {"sub": "1", "exp": 2**32}, "k" * 32, algorithm="HS256", headers={"kid": "rsa"}
    )
    assert status_with(by_public_key) == INVALID


def test_entries_that_are_no_keys_for_tokens_are_passed_over(provider: Provider) -> None:
    provider.add("k1")
    provider.add("encrypts", use="enc")
    shared = {"kty": "oct", "kid": "shared", "k": encoded(b"k" * 32)}
    provider.served += [
        shared,
        {"kid": "empty"},
        {"kid": 5},
        "text",  # type: ignore[list-item]
        {"kid": "bad", "kty": "RSA", "n": 1, "e": []},
    ]
    assert status_with(provider.token("k1")) == (200, "")
    assert status_with(provider.token("encrypts"))[0] in (401, 503)
    by_shared_key = jwt.encode(
        {"sub": "1", "exp": 2**32}, "k" * 32, algorithm="HS256", headers={"kid": "shared"}
    )
    until(lambda: answers(by_shared_key, *INVALID))
    assert status_with(by_shared_key)[0] != 200


def test_a_new_key_is_fetched_once_a_token_names_it(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 1_000)
    provider.add("k1")
    assert status_with(provider.token("k1")) == (200, "")
    provider.add("k2")
    until(lambda: answers(provider.token("k2"), 200))


def test_unknown_keys_do_not_make_us_ask_without_end(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "COOLDOWN_SECONDS", 1_000)
    provider.add("k1")
    assert status_with(provider.token("k1")) == (200, "")
    provider.private |= {f"unknown{n}": provider.private["k1"] for n in range(50)}
    for n in range(50):
        assert status_with(provider.token(f"unknown{n}")) == INVALID
    assert provider.requests == 1


def test_a_removed_key_is_trusted_no_more_in_kept_tokens_either(provider: Provider) -> None:
    provider.add("k1")
    provider.add("k2")
    leaked, good = provider.token("k1"), provider.token("k2")
    assert status_with(leaked) == status_with(good) == (200, "")
    kept = authentication._kept[good]
    provider.remove("k1")
    until(lambda: not answers(leaked, 200))
    assert principal_without_waiting(leaked) is None
    assert status_with(good) == (200, "")
    assert authentication._kept[good] is kept  # nobody else's token had to be verified again


def test_another_key_under_the_same_id_ends_the_trust_in_the_first(provider: Provider) -> None:
    provider.add("k1")
    first = provider.token("k1")
    assert status_with(first) == (200, "")
    provider.served = []
    provider.add("k1")
    until(lambda: answers(first, *INVALID))
    assert status_with(provider.token("k1")) == (200, "")


@pytest.mark.parametrize(
    "page", [b"<h1>We are working on it</h1>", b'{"keys": []}', b"[]", b'{"keys": 1}', b"[" * 9_999]
)
def test_the_last_good_set_serves_while_the_provider_is_away(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, page: bytes
) -> None:
    provider.add("k1")
    assert status_with(provider.token("k1")) == (200, "")
    asked, provider.page = provider.requests, page
    until(lambda: provider.requests > asked + 1)
    assert status_with(provider.token("k1", iat=1)) == (200, "")
    provider.die()
    assert status_with(provider.token("k1", iat=2)) == (200, "")
    provider.page = None
    provider.add("k2")
    provider.start()
    until(lambda: answers(provider.token("k2"), 200))


def test_without_the_key_set_nobody_can_tell_whether_a_token_is_good(provider: Provider) -> None:
    provider.add("k1")
    provider.die()
    answer = Current.api.anonymous(Authorization=f"Bearer {provider.token('k1')}").get("/feeds/1")
    assert told(answer) == (503, "keys_unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert status_with("not.a.token") == INVALID
    provider.start()
    until(lambda: answers(provider.token("k1"), 200))


def test_nobody_waits_for_a_provider_that_hangs_but_one_and_only_at_the_start(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "FIRST_WAIT_SECONDS", 1_000)
    provider.add("k1")
    provider.hang()
    waiting = threading.Thread(target=keys.key_set(provider.url).wait_for_first, daemon=True)
    waiting.start()
    until(keys.key_set(provider.url)._first_waiter.locked)
    for n in range(20):  # each would take 1,000 s if it waited
        assert status_with(provider.token("k1", iat=n)) == (503, "keys_unavailable")
    assert provider.requests == 1
    provider.go_on()
    waiting.join(10)
    until(lambda: answers(provider.token("k1"), 200))


def test_a_provider_that_hangs_later_stops_nobody(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "FETCH_SECONDS", 0.2)
    provider.add("k1")
    assert status_with(provider.token("k1")) == (200, "")
    provider.hang()
    asked = provider.requests
    until(lambda: provider.requests > asked + 2)  # its requests time out, and others follow
    assert status_with(provider.token("k1", iat=1)) == (200, "")
    provider.go_on()
    provider.add("k2")
    until(lambda: answers(provider.token("k2"), 200))


# Settings -----------------------------------------------------------------------------------------


def checked(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, check=False
    )


def test_a_provider_without_an_audience_is_warned_of() -> None:
    deploy = ("check", "--deploy", "--tag", "security")
    warned = checked(*deploy, JWT_JWKS_URL="http://identity.example/keys")
    assert "feedsite.W001) Tokens that the provider issued for others are taken." in warned.stderr
    assert "feedsite.W002) JWT_JWKS_URL is fetched without TLS." in warned.stderr
    anywhere = checked(*deploy, DJANGO_ALLOWED_HOSTS="*")
    assert "feedsite.W003) DJANGO_ALLOWED_HOSTS lets any Host pass." in anywhere.stderr
    fine = checked(*deploy, JWT_JWKS_URL="https://identity.example/keys", JWT_AUDIENCE="feeds")
    assert "feedsite.W0" not in fine.stderr


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("JWT_PUBLIC_KEY", "none", "JWT_PUBLIC_KEY is not the PEM"),
        ("JWT_JWKS_URL", "file:///etc/passwd", "https://"),
    ],
)
def test_what_cannot_be_a_key_is_refused_at_the_start(
    variable: str, value: str, complaint: str
) -> None:
    refused = checked("check", **{variable: value})
    assert refused.returncode == 1
    assert complaint in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


OWN_SERVERS = {
    "DATABASE_URL": "postgresql://none/none",
    "KAFKA_BOOTSTRAP_SERVERS": "none",
    "JWT_SIGNING_KEY": "",
}


def start(**variables: str) -> subprocess.CompletedProcess[str]:
    serve = [sys.executable, "-c", "import feedsite.wsgi"]
    given = environment() | OWN_SERVERS | variables
    return subprocess.run(serve, env=given, capture_output=True, text=True, check=False)


def test_workers_need_no_key_and_the_api_does_not_start_without() -> None:
    secret = {"DJANGO_SECRET_KEY": "s" * 50}
    assert checked("check", **OWN_SERVERS, DJANGO_SECRET_KEY="").returncode == 0
    assert "Set DJANGO_SECRET_KEY" in start(JWT_SIGNING_KEY="s" * 50, DJANGO_SECRET_KEY="").stderr
    api = start(**secret)
    assert api.returncode == 1
    assert api.stderr.startswith("error: Set JWT_SIGNING_KEY, JWT_PUBLIC_KEY or JWT_JWKS_URL")
    assert len(api.stderr.strip().splitlines()) == 1
    issued = checked("issue_token", "1", **OWN_SERVERS, **secret)
    assert (issued.returncode, issued.stdout) == (1, "")
    assert "Set JWT_SIGNING_KEY" in issued.stderr
