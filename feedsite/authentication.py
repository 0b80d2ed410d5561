"""Who is asking: a JWT in `Authorization: Bearer …`, whose `sub` is the user id.

Tokens are verified with `JWT_SIGNING_KEY` (HS256), or with `JWT_PUBLIC_KEY` or the keys at
`JWT_JWKS_URL` (RS256, ES256). Verifying costs more than the rest of a cached read, so the principal
of a verified token is kept until the token expires or its key is trusted no more.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import jwt
from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from eventbus.envelope import parse_id
from eventbus.exceptions import InvalidEvent
from feedsite import keys
from feedsite.keys import Key, KeysUnavailable
from posts.principal import Principal

KEPT_TOKENS = 50_000  # of about half a kilobyte each
MAX_TOKEN_CHARS = 4_096
LEEWAY_SECONDS = 5
END_OF_9999 = 253_402_300_799
TIMES = ("exp", "nbf", "iat")
# What PyJWT lets through when the parts of a token are of types, sizes or depths that nobody
# expects.
UNREADABLE = (
    jwt.PyJWTError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
)


class JWTAuthentication(BaseAuthentication):
    """Authenticates requests by bearer token."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        token = token_of(request.META.get("HTTP_AUTHORIZATION", ""))
        if not token:
            return None
        return principal_of(token), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def token_of(header: str) -> str:
    """Return the token in an `Authorization` header; empty if there is none."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True, slots=True)
class _Kept:
    principal: Principal
    expires_at: float
    key: Key


_kept: dict[str, _Kept] = {}
_changing_kept = threading.Lock()


def principal_of(token: str) -> Principal:
    """Return who `token` was issued to.

    Raises `AuthenticationFailed`, and `KeysUnavailable` when nobody can tell.
    """
    principal = _kept_principal(token)
    if principal is None:
        if settings.JWT_JWKS_URL:
            keys.key_set(settings.JWT_JWKS_URL).wait_for_first()
        principal = _verify_and_keep(token)
    return principal


def principal_without_waiting(token: str) -> Principal | None:
    """Return who `token` was issued to where that can be told at once, without any I/O; None in any
    doubt.

    Never raises: what is wrong with a token is told by `principal_of`.
    """
    principal = _kept_principal(token)
    if principal is None:
        try:
            principal = _verify_and_keep(token)
        except (AuthenticationFailed, KeysUnavailable):
            return None
    return principal


def expiry_of(token: str) -> float:
    """Return when a token that was just verified expires, in seconds since 1970."""
    kept = _kept.get(token)
    return kept.expires_at if kept else 0.0


def issue_token(user_id: int, scope: str, ttl_seconds: int) -> str:
    """Return a token of this site's own HS256 key. Raises `ValueError` when there is none."""
    if settings.JWT_PUBLIC_KEY or settings.JWT_JWKS_URL:
        raise ValueError("Tokens come from the issuer behind JWT_PUBLIC_KEY or JWT_JWKS_URL.")
    if not settings.JWT_SIGNING_KEY:
        raise ValueError("Set JWT_SIGNING_KEY, the API's: tokens are signed with it.")
    now = int(time.time())
    claims: dict[str, Any] = {"sub": str(user_id), "iat": now, "exp": now + ttl_seconds}
    optional = {"scope": scope, "aud": settings.JWT_AUDIENCE, "iss": settings.JWT_ISSUER}
    claims |= {name: value for name, value in optional.items() if value}
    return jwt.encode(claims, settings.JWT_SIGNING_KEY, algorithm="HS256")


def _kept_principal(token: str) -> Principal | None:
    kept = _kept.get(token)
    if kept is None or time.time() >= kept.expires_at or not kept.key.is_trusted:
        return None
    return kept.principal


def _verify_and_keep(token: str) -> Principal:
    if len(token) > MAX_TOKEN_CHARS:
        raise AuthenticationFailed("The token is too long.", code="invalid_token")
    key = _key_for(token)
    claims = _verify(token, key)
    principal = Principal(_user_id(claims), _scopes(claims))
    with _changing_kept:
        _kept.pop(token, None)
        if len(_kept) >= KEPT_TOKENS:
            del _kept[next(iter(_kept))]  # the oldest: a dict keeps the order of insertion
        _kept[token] = _Kept(principal, float(claims["exp"]), key)
    return principal


def _key_for(token: str) -> Key:
    if settings.JWT_JWKS_URL:
        return _key_from_set(token)
    if settings.JWT_PUBLIC_KEY:
        return keys.public_key(settings.JWT_PUBLIC_KEY)
    if settings.JWT_SIGNING_KEY:
        return keys.signing_key(settings.JWT_SIGNING_KEY)
    # With an empty key anybody could sign. The API does not start like this (feedsite/checks.py).
    raise KeysUnavailable


def _key_from_set(token: str) -> Key:
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
    except UNREADABLE as error:
        raise _invalid() from error
    if not isinstance(key_id, str):
        raise _invalid()
    try:
        return keys.key_set(settings.JWT_JWKS_URL).key(key_id)
    except keys.UnknownKey as error:
        raise _invalid() from error


def _verify(token: str, key: Key) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.material,
            algorithms=[key.algorithm],
            audience=settings.JWT_AUDIENCE or None,
            issuer=settings.JWT_ISSUER or None,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"], "verify_aud": bool(settings.JWT_AUDIENCE)},
        )
    except jwt.ExpiredSignatureError as error:
        raise AuthenticationFailed("The token has expired.", code="token_expired") from error
    except UNREADABLE as error:
        raise _invalid() from error
    # PyJWT takes whatever int() takes, such as true and "12".
    if not all(_is_time(claims[name]) for name in TIMES if name in claims):
        raise _invalid()
    return claims


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= END_OF_9999  # type: ignore[operator]


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """Return the scopes: words of a text (RFC 8693), or the entries of a list, each of which is one
    scope.
    """
    scope = claims.get("scope")
    if isinstance(scope, str):
        return frozenset(scope.split())
    if isinstance(scope, list):
        return frozenset(entry for entry in scope if isinstance(entry, str))
    return frozenset()


def _user_id(claims: dict[str, Any]) -> int:
    try:
        return parse_id(claims["sub"], "sub")
    except InvalidEvent as error:
        raise AuthenticationFailed(str(error), code="invalid_token") from error


def _invalid() -> AuthenticationFailed:
    return AuthenticationFailed("The token is not valid.", code="invalid_token")
