"""Who a token says is asking, and the keys that verify it."""

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.test import Client
from pytest_django import Settings

from feedsite.authentication import issue_token
from tests.api.test_api import told

pytestmark = pytest.mark.django_db(transaction=True)


def status_with(token: str) -> tuple[int, str]:
    answer = Client(headers={"Authorization": f"Bearer {token}"}).get("/feeds/1")
    return (200, "") if answer.status_code == 200 else told(answer)


def test_no_token_is_a_401_that_says_how() -> None:
    answer = Client().get("/feeds/1")
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
    assert status_with(jwt.encode({"sub": "1", "exp": soon}, "", algorithm="none")) == (401, "invalid_token")
    assert status_with(jwt.encode({"sub": "1", "exp": soon}, "k" * 32, algorithm="HS256")) == (401, "invalid_token")
    assert status_with("x" * 5_000) == (401, "invalid_token")


def public_pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    return pem.decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_tokens_of_an_outside_issuer(settings: Settings, algorithm: str) -> None:
    key: Any = (
        rsa.generate_private_key(65_537, 2_048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    )
    settings.JWT_PUBLIC_KEY = public_pem(key)
    claims = {"sub": "1", "exp": int(time.time()) + 60}
    assert status_with(jwt.encode(claims, key, algorithm=algorithm)) == (200, "")
    own = jwt.encode(claims | {"x": 1}, settings.JWT_SIGNING_KEY, algorithm="HS256")
    assert status_with(own) == (401, "invalid_token")
    settings.JWT_SIGNING_KEY = ""
    with pytest.raises(ValueError, match="issuer"):
        issue_token(1, "", 60)


@pytest.fixture
def jwks() -> Iterator[tuple[str, Any]]:
    """Serve a key set, as an identity provider does."""
    key = rsa.generate_private_key(65_537, 2_048)
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    described = json.loads(algorithm.to_jwk(key.public_key())) | {"kid": "k1", "use": "sig"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": [described]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/jwks.json", key
    server.shutdown()


def test_tokens_by_key_set(settings: Settings, jwks: tuple[str, Any]) -> None:
    settings.JWT_JWKS_URL, key = jwks
    claims = {"sub": "1", "exp": int(time.time()) + 60}
    assert status_with(jwt.encode(claims, key, algorithm="RS256", headers={"kid": "k1"})) == (200, "")
    assert status_with(jwt.encode(claims, key, algorithm="RS256", headers={"kid": "k2"})) == (401, "invalid_token")


class Identity(BaseHTTPRequestHandler):
    """An identity provider that answers with an error page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>We are working on it</h1>")


def test_without_the_key_set_nobody_can_tell_whether_a_token_is_good(settings: Settings) -> None:
    token = jwt.encode({"sub": "1", "exp": int(time.time()) + 60}, "k" * 32, headers={"kid": "k1"})
    with HTTPServer(("127.0.0.1", 0), Identity) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for url in ("http://127.0.0.1:1/jwks.json", f"http://127.0.0.1:{server.server_port}/jwks.json"):
            settings.JWT_JWKS_URL = url
            answer = Client(headers={"Authorization": f"Bearer {token}"}).get("/feeds/1")
            assert told(answer) == (503, "keys_unavailable")
            assert answer.headers["Retry-After"] == "1"
            assert status_with("not.a.token") == (401, "invalid_token")
        server.shutdown()
