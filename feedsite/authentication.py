"""Who is asking: a JWT in `Authorization: Bearer …`, whose `sub` is the user id.

Tokens are verified with `JWT_SIGNING_KEY` (HS256), or with `JWT_PUBLIC_KEY` or the keys at `JWT_JWKS_URL` (RS256,
ES256).
Verifying costs more than the rest of a cached read, so the claims of a verified token are kept until it expires.
"""

import time
from functools import cache
from typing import Any

import jwt
import structlog
from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from eventbus.envelope import parse_id
from eventbus.exceptions import InvalidEvent
from posts.principal import Principal

KEPT_TOKENS = 20_000
MAX_TOKEN_CHARS = 4_096
LEEWAY_SECONDS = 5


log = structlog.get_logger(__name__)


class KeysUnavailable(Exception):
    """The keys that verify tokens cannot be fetched. Try again."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


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


def principal_without_waiting(token: str) -> Principal | None:
    """Return who `token` was issued to, if that can be told at once; None when in doubt of any kind."""
    kept = _kept.get(token)
    if kept is not None and time.time() < kept[0]:
        return kept[1]
    if not token or settings.JWT_JWKS_URL:
        return None
    try:
        return principal_of(token)
    except AuthenticationFailed:
        return None


_kept: dict[str, tuple[float, Principal]] = {}


def principal_of(token: str) -> Principal:
    """Return who `token` was issued to. Raises `AuthenticationFailed`, and `KeysUnavailable` when nobody can tell."""
    kept = _kept.get(token)
    if kept is not None and time.time() < kept[0]:
        return kept[1]
    _kept.pop(token, None)
    claims = _verify(token)
    principal = Principal(_user_id(claims), frozenset(str(claims.get("scope", "")).split()))
    if len(_kept) >= KEPT_TOKENS:
        _kept.clear()
    _kept[token] = (float(claims["exp"]), principal)
    return principal


def issue_token(user_id: int, scope: str, ttl_seconds: int) -> str:
    """Return a token of this site's own HS256 key. Raises `ValueError` when an outside issuer is configured."""
    if not settings.JWT_SIGNING_KEY:
        raise ValueError("Tokens come from the issuer behind JWT_PUBLIC_KEY or JWT_JWKS_URL.")
    now = int(time.time())
    claims: dict[str, Any] = {"sub": str(user_id), "iat": now, "exp": now + ttl_seconds}
    optional = {"scope": scope, "aud": settings.JWT_AUDIENCE, "iss": settings.JWT_ISSUER}
    claims |= {name: value for name, value in optional.items() if value}
    return jwt.encode(claims, settings.JWT_SIGNING_KEY, algorithm="HS256")


def _verify(token: str) -> dict[str, Any]:
    if len(token) > MAX_TOKEN_CHARS:
        raise AuthenticationFailed("The token is too long.", code="invalid_token")
    try:
        key, algorithms = _key_for(token)
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=settings.JWT_AUDIENCE or None,
            issuer=settings.JWT_ISSUER or None,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"], "verify_aud": bool(settings.JWT_AUDIENCE)},
        )
    except jwt.ExpiredSignatureError as error:
        raise AuthenticationFailed("The token has expired.", code="token_expired") from error
    except (jwt.PyJWTError, ValueError) as error:
        raise AuthenticationFailed("The token is not valid.", code="invalid_token") from error
    return claims


def _key_for(token: str) -> tuple[Any, list[str]]:
    if settings.JWT_JWKS_URL:
        return _key_from_set(token), ["RS256", "ES256"]
    if settings.JWT_PUBLIC_KEY:
        return settings.JWT_PUBLIC_KEY, ["RS256", "ES256"]
    return settings.JWT_SIGNING_KEY, ["HS256"]


def _key_from_set(token: str) -> Any:
    """Return the token's key. Raises `jwt.PyJWTError` for a token that names none, and `KeysUnavailable`."""
    key_id = jwt.get_unverified_header(token).get("kid", "")
    key_set = _jwks(settings.JWT_JWKS_URL)
    try:
        key_set.get_signing_keys()
    except (jwt.PyJWTError, ValueError, OSError) as error:
        raise _keys_unavailable(error) from error
    try:
        return key_set.get_signing_key(key_id).key
    except jwt.PyJWKClientConnectionError as error:  # an unknown key has the set fetched again
        raise _keys_unavailable(error) from error


def _keys_unavailable(error: Exception) -> KeysUnavailable:
    log.error("jwks_unavailable", error=str(error))
    return KeysUnavailable()


@cache
def _jwks(url: str) -> jwt.PyJWKClient:
    return jwt.PyJWKClient(url, cache_keys=True, lifespan=300, timeout=5)


def _user_id(claims: dict[str, Any]) -> int:
    try:
        return parse_id(claims["sub"], "sub")
    except InvalidEvent as error:
        raise AuthenticationFailed(str(error), code="invalid_token") from error
