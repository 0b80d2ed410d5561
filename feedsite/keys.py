"""The keys that verify tokens: this site's own, one public key, or the set at `JWT_JWKS_URL`.

A set is fetched by one thread a process, so that no request waits for somebody else's server. While
that server is away the last good set goes on serving; a key that a newer set lacks is trusted no
more.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from typing import Any

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

# Below the 300 s within which a removed key stops being trusted, by what a fetch and its repetition
# may take.
REFRESH_SECONDS = 240.0
# Between two fetches, whether they succeed or not.
COOLDOWN_SECONDS = 5.0
FETCH_SECONDS = 5.0
FIRST_WAIT_SECONDS = 1.0
MAX_SET_BYTES = 1_048_576
# Many providers turn away the name that urllib gives itself.
HEADERS = {"Accept": "application/json", "User-Agent": "feed-backend"}

log = structlog.get_logger(__name__)

_sets: dict[str, "KeySet"] = {}
_making = threading.Lock()


class KeysUnavailable(Exception):
    """The keys that verify tokens cannot be fetched. Try again."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class UnknownKey(Exception):
    """The set has no key of this id."""


@dataclass(slots=True, eq=False)
class Key:
    """A key and the only algorithm it may be used with.

    `is_trusted` ends when a newer set lacks the key.
    """

    material: Any
    algorithm: str
    described: Any
    is_trusted: bool = True


class KeySet:
    """The set of keys at `url`, kept fresh by a thread from now on."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Mapping[str, Key] | None = None
        self._as_of = 0.0  # monotonic: when the fetch that brought the set began
        self._fails = False
        self._tried_once = threading.Event()
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._first_waiter = threading.Lock()
        threading.Thread(target=self._keep_fresh, name="key-set", daemon=True).start()

    def key(self, key_id: str) -> Key:
        """Return the key, without waiting.

        Raises `UnknownKey`, and `KeysUnavailable` when only a newer set can tell.

        Asking for a key that the set lacks has the set fetched again soon.
        """
        if self._keys is None:
            raise KeysUnavailable
        key = self._keys.get(key_id)
        if key is not None:
            return key
        self._wanted.set()
        if time.monotonic() - self._as_of > COOLDOWN_SECONDS:
            raise KeysUnavailable
        raise UnknownKey

    def wait_for_first(self) -> None:
        """Let one caller wait a moment for the very first answer of the server; everybody else
        returns at once.
        """
        if self._tried_once.is_set() or not self._first_waiter.acquire(blocking=False):
            return
        try:
            self._tried_once.wait(FIRST_WAIT_SECONDS)
        finally:
            self._first_waiter.release()

    def close(self) -> None:
        """Fetch no more."""
        self._closed.set()
        self._wanted.set()

    def _keep_fresh(self) -> None:
        while not self._closed.is_set():
            self._wanted.clear()
            self._refresh()
            self._tried_once.set()
            self._closed.wait(COOLDOWN_SECONDS)
            if not self._fails:
                self._wanted.wait(REFRESH_SECONDS - COOLDOWN_SECONDS)

    def _refresh(self) -> None:
        started = time.monotonic()
        try:
            newer = _read_set(_fetch(self._url))
        except Exception as error:  # noqa: BLE001 - whatever their server sends, this thread goes on
            if not self._fails:
                log.error("key_set_unavailable", url=self._url, error=str(error) or repr(error))
            self._fails = True
            return
        if self._fails or self._keys is None:
            log.info("key_set_fetched", url=self._url, keys=len(newer))
        self._take_over(newer)
        self._as_of, self._fails = started, False

    def _take_over(self, newer: dict[str, Key]) -> None:
        """Serve `newer`.

        A key it has unchanged stays the same object, so that tokens verified with it stay kept.
        """
        older = self._keys or {}
        for key_id, key in older.items():
            if key_id in newer and newer[key_id].described == key.described:
                newer[key_id] = key
            else:
                key.is_trusted = False
        self._keys = newer


def key_set(url: str) -> KeySet:
    """Return the set of keys at `url`, which is fetched from the first call on."""
    found = _sets.get(url)
    if found is None:
        with _making:
            found = _sets.get(url) or _sets.setdefault(url, KeySet(url))
    return found


@cache
def public_key(pem: str) -> Key:
    """Return the RSA or P-256 key in `pem`. Raises `ValueError`."""
    try:
        material = load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if isinstance(material, RSAPublicKey):
        return Key(material, "RS256", pem)
    if isinstance(material, EllipticCurvePublicKey) and isinstance(material.curve, SECP256R1):
        return Key(material, "ES256", pem)
    raise ValueError("neither an RSA key nor one on the curve P-256")


@cache
def signing_key(secret: str) -> Key:
    """Return the key of this site's own tokens."""
    return Key(secret, "HS256", secret)


def _fetch(url: str) -> bytes:
    """Return what is at `url`. Raises `OSError` and others."""
    deadline = time.monotonic() + FETCH_SECONDS
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310 - environment.py allows http and https alone
    with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:  # noqa: S310
        body = bytearray()
        # The time-out is that of one read: a server that sends byte by byte must come to an end
        # too.
        while part := response.read1(65_536):
            body += part
            if len(body) > MAX_SET_BYTES:
                raise HTTPException(f"The key set is larger than {MAX_SET_BYTES} bytes.")
            if time.monotonic() > deadline:
                raise TimeoutError("The key set did not arrive in time.")
    return bytes(body)


def _read_set(body: bytes) -> dict[str, Key]:
    """Return the usable keys by their id.

    Raises `ValueError` when there is none: an error page is no key set.
    """
    described = json.loads(body)
    entries = described.get("keys") if isinstance(described, dict) else None
    keys: dict[str, Key] = {}
    for entry in entries if isinstance(entries, list) else ():
        key = _read_key(entry)
        if key is not None:
            keys[entry["kid"]] = key
    if not keys:
        raise ValueError("There is no RS256 or ES256 key in the answer.")
    return keys


def _read_key(entry: Any) -> Key | None:
    """Return the key, None when it is not for tokens, or of a kind that is not taken here."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        return None
    if entry.get("use", "sig") != "sig":
        return None
    try:
        parsed = jwt.PyJWK(entry)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    # A private or a shared key in a public place is no key.
    if not isinstance(parsed.key, RSAPublicKey | EllipticCurvePublicKey):
        return None
    fits = {"RS256": RSAPublicKey, "ES256": EllipticCurvePublicKey}.get(parsed.algorithm_name, ())
    return Key(parsed.key, parsed.algorithm_name, entry) if isinstance(parsed.key, fits) else None
