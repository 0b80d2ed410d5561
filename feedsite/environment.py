"""The settings that the environment gives, with type, default and unit.

`docs/settings.md` is the same table for people, and has the few variables that others read:
`bin/serve`, the embedded servers, OpenTelemetry. A wrong value raises `ImproperlyConfigured` with
one sentence.
"""

import math
import os
import re
import secrets
from pathlib import Path
from typing import Any, NoReturn

import dj_database_url
import psycopg
from django.core.exceptions import ImproperlyConfigured
from environs import Env, EnvError, validate
from psycopg import conninfo

from eventbus import cellmap
from feedsite import connections, keys
from feedsite.embedded import addresses, tansu

BRACKETS = re.compile(r"""\[(['"])(.*)\1\]""")

BASE_DIR = Path(__file__).resolve().parent.parent
POSITIVE = validate.Range(min=1)
DAYS = validate.Range(1, 36_500)
LANES = validate.Range(1, 32)
MAX_EVENTS_IN_HAND = 5_000
# Seconds. A page must be gone before its reader can count as idle, after which nobody invalidates
# it.
MAX_CACHE_TTL = 43_200
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
REDIS_ADDRESS = validate.Regexp(
    r"((rediss?|unix)://.+)?\Z", error="Must start with redis://, rediss:// or unix://."
)
HTTP_ADDRESS = validate.Regexp(r"(https?://\S+)?\Z", error="Must start with https:// or http://.")
DATABASE_ADDRESS = (
    "Must be postgresql://user:password@host:port/name, special characters percent-encoded."
)
SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISM = validate.OneOf(
    ["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
    error="Must be one of: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512.",
)
# As browsers write it: without the port that the scheme has anyway, and without a path.
ORIGIN = re.compile(
    r"(http://(?!.*:80\Z)|https://(?!.*:443\Z))([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
)
MAX_LOOKUPS = 100  # posts of one request (posts/views.py)
RATE = validate.Regexp(
    r"([1-9]\d*/(s|sec|second|m|min|minute|h|hour|d|day))?\Z",
    error="Must be a number a time, such as 60/min.",
)


def read() -> dict[str, Any]:
    """Return all settings read from the environment, keyed by variable name.

    Raises `ImproperlyConfigured` naming the variable and what is wrong with it.
    """
    try:
        values = _read(Env())
    except EnvError as error:
        raise ImproperlyConfigured(f"Wrong configuration: {_sentence(error)}") from error
    _check_origins(values)
    _check_lookup_rate(values)
    _check_timeouts(values)
    _check_kafka_security(values)
    _check_pruning(values)
    _check_lanes(values)
    _check_cell(values)
    return values


def _sentence(error: EnvError) -> str:
    """Return what is wrong without the brackets that a list of sentences has in Python."""
    return BRACKETS.sub(r"\2", str(error))


def database(url: str, source: str = "DATABASE_URL") -> dict[str, Any]:
    """Return the address of PostgreSQL in `url` as Django writes it. Raises `ImproperlyConfigured`
    with `source`, where it is written.

    What is wrong is not shown: the address has a password in it.
    """
    try:
        parsed: dict[str, Any] = dict(dj_database_url.parse(url))
        conninfo.make_conninfo("", **parsed.get("OPTIONS", {}))
    except (ValueError, psycopg.Error):
        raise ImproperlyConfigured(
            f"Wrong configuration: {source} is no address. {DATABASE_ADDRESS}"
        ) from None
    if parsed["ENGINE"] != "django.db.backends.postgresql" or not parsed["NAME"]:
        raise ImproperlyConfigured(
            f"Wrong configuration: {source} does not name one. {DATABASE_ADDRESS}"
        )
    return parsed


def _read(env: Env) -> dict[str, Any]:
    data_dir = Path(env.str("FEED_DATA_DIR", str(BASE_DIR / ".local"))).resolve()
    embedded = addresses(data_dir)
    has_cells = bool(env.str("FEED_CELLS", ""))
    all_external = has_cells or not _is_embedded("DATABASE_URL", embedded)
    kafka = _kafka_settings(env, _is_embedded("KAFKA_BOOTSTRAP_SERVERS", embedded))
    threads = {
        "BLOCKING_THREADS": env.int("BLOCKING_THREADS", 8, validate=validate.Range(1, 256)),
        "FEED_FANOUT_LANES": env.int("FEED_FANOUT_LANES", 2, validate=LANES),
    }
    return {
        "FEED_DATA_DIR": data_dir,
        "FEED_CELLS": env.str("FEED_CELLS", ""),
        "FEED_CELL": env.str("FEED_CELL", ""),
        "DATABASE_URL": env.str("DATABASE_URL", "") or embedded.get("DATABASE_URL", ""),
        "REDIS_URL": env.str("REDIS_URL", "", validate=REDIS_ADDRESS)
        or embedded.get("REDIS_URL", ""),
        "KAFKA_BOOTSTRAP_SERVERS": env.str("KAFKA_BOOTSTRAP_SERVERS", "")
        or embedded.get("KAFKA_BOOTSTRAP_SERVERS", ""),
        # Web
        "DJANGO_SECRET_KEY": _secret_of_the_api(env, "DJANGO_SECRET_KEY", data_dir, all_external),
        "DJANGO_DEBUG": env.bool("DJANGO_DEBUG", False),
        "DJANGO_ALLOWED_HOSTS": env.list(
            "DJANGO_ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"]
        ),
        "DJANGO_CSRF_TRUSTED_ORIGINS": env.list("DJANGO_CSRF_TRUSTED_ORIGINS", []),
        "CORS_ALLOWED_ORIGINS": env.list("CORS_ALLOWED_ORIGINS", []),
        "DJANGO_HTTPS": env.bool("DJANGO_HTTPS", all_external),
        "DJANGO_HSTS": env.str(
            "DJANGO_HSTS", "host", validate=validate.OneOf(["host", "subdomains", "preload"])
        ),
        "TRUSTED_PROXIES": env.int("TRUSTED_PROXIES", 0, validate=validate.Range(0, 10)),
        **threads,
        "DATABASE_POOL_MAX": env.int(
            "DATABASE_POOL_MAX",
            connections.most(threads, has_cells=has_cells),
            validate=POSITIVE,
        ),
        # Tokens
        **_token_settings(env, data_dir, all_external),
        # Kafka
        **kafka,
        # Feeds
        "FEED_STRATEGY": env.str(
            "FEED_STRATEGY", "hybrid", validate=validate.OneOf(["push", "pull", "hybrid"])
        ),
        "FEED_PUSH_MAX_FOLLOWERS": env.int("FEED_PUSH_MAX_FOLLOWERS", 10_000, validate=POSITIVE),
        "FEED_MAX_ENTRIES": env.int("FEED_MAX_ENTRIES", 800, validate=validate.Range(min=100)),
        "FEED_BATCH_MAX_EVENTS": env.int(
            "FEED_BATCH_MAX_EVENTS", 500, validate=validate.Range(1, 5_000)
        ),
        "FEED_BATCH_MAX_WAIT_MS": env.int(
            "FEED_BATCH_MAX_WAIT_MS", 5, validate=validate.Range(0, 10_000)
        ),
        "FEED_BATCH_MAX_ROWS": env.int(
            "FEED_BATCH_MAX_ROWS", 50_000, validate=validate.Range(min=1_000)
        ),
        "FEED_PARTITION_ROWS": env.int("FEED_PARTITION_ROWS", 2_000_000, validate=POSITIVE),
        "FEED_PARTITIONS": env.int("FEED_PARTITIONS", 32, validate=validate.Range(2, 1_000)),
        "FEED_IDLE_DAYS": env.int("FEED_IDLE_DAYS", 30, validate=POSITIVE),
        "FEED_CACHE_TTL": env.int(
            "FEED_CACHE_TTL", 3_600, validate=validate.Range(1, MAX_CACHE_TTL)
        ),
        "DLQ_FLOOD_COUNT": env.int("DLQ_FLOOD_COUNT", 500, validate=POSITIVE),
        "DLQ_FLOOD_SECONDS": env.int("DLQ_FLOOD_SECONDS", 60, validate=POSITIVE),
        "DLQ_MAX_REPLAYS": env.int("DLQ_MAX_REPLAYS", 5, validate=POSITIVE),
        "WORKER_STUCK_SECONDS": env.int("WORKER_STUCK_SECONDS", 60, validate=POSITIVE),
        # Pruning
        **_pruning_settings(env, kafka["KAFKA_RETENTION_HOURS"]),
        "API_FRONT": env.bool("API_FRONT", True),
        "API_VISIBILITY": env.str(
            "API_VISIBILITY", "private", validate=validate.OneOf(["private", "public"])
        ),
        "LIVE_MAX_STREAMS": env.int("LIVE_MAX_STREAMS", 10_000, validate=POSITIVE),
        "HTTP_BODY_SECONDS": env.int("HTTP_BODY_SECONDS", 10, validate=validate.Range(1, 3_600)),
        "HTTP_SEND_SECONDS": env.int("HTTP_SEND_SECONDS", 30, validate=validate.Range(1, 3_600)),
        "API_POST_RATE": env.str("API_POST_RATE", "", validate=RATE),
        "API_LOOKUP_RATE": env.str("API_LOOKUP_RATE", "", validate=RATE),
        "LOG_FORMAT": env.str(
            "LOG_FORMAT", "console", validate=validate.OneOf(["console", "json"])
        ),
        "OTEL_TRACES_EXPORTER": env.str(
            "OTEL_TRACES_EXPORTER", "none", validate=validate.OneOf(["none", "otlp", "console"])
        ),
        "LOG_LEVEL": env.str(
            "LOG_LEVEL", "INFO", validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])
        ),
    }


def _token_settings(env: Env, data_dir: Path, all_external: bool) -> dict[str, Any]:
    public_key = env.str("JWT_PUBLIC_KEY", "")
    jwks_url = env.str("JWT_JWKS_URL", "", validate=HTTP_ADDRESS)
    asymmetric = bool(public_key or jwks_url)
    return {
        "JWT_PUBLIC_KEY": _public_key(public_key.replace("\\n", "\n")),
        "JWT_JWKS_URL": jwks_url,
        "JWT_SIGNING_KEY": (
            "" if asymmetric else _secret_of_the_api(env, "JWT_SIGNING_KEY", data_dir, all_external)
        ),
        "JWT_AUDIENCE": env.str("JWT_AUDIENCE", ""),
        "JWT_ISSUER": env.str("JWT_ISSUER", ""),
    }


def _secret_of_the_api(env: Env, variable: str, data_dir: Path, all_external: bool) -> str:
    """Return the secret, or none: workers have no use for it.

    The API does not start without (feedsite/checks.py).
    """
    if all_external and not env.str(variable, ""):
        return ""
    return _secret(env, variable, data_dir)


def _public_key(pem: str) -> str:
    try:
        if pem:
            keys.public_key(pem)
    except ValueError:
        _refuse("JWT_PUBLIC_KEY is not the PEM of a public key, RSA or on the curve P-256.")
    return pem


def _kafka_settings(env: Env, embedded: bool) -> dict[str, Any]:
    return {
        "KAFKA_SECURITY_PROTOCOL": env.str(
            "KAFKA_SECURITY_PROTOCOL",
            "PLAINTEXT",
            validate=validate.OneOf(SECURITY_PROTOCOLS),
        ),
        "KAFKA_SASL_MECHANISM": env.str("KAFKA_SASL_MECHANISM", "", validate=SASL_MECHANISM),
        "KAFKA_SASL_USERNAME": env.str("KAFKA_SASL_USERNAME", ""),
        "KAFKA_SASL_PASSWORD": env.str("KAFKA_SASL_PASSWORD", ""),
        "KAFKA_SSL_CA_LOCATION": env.str("KAFKA_SSL_CA_LOCATION", ""),
        "KAFKA_PARTITIONS": env.int("KAFKA_PARTITIONS", 6, validate=POSITIVE),
        "KAFKA_REPLICATION_FACTOR": env.int("KAFKA_REPLICATION_FACTOR", 1, validate=POSITIVE),
        "KAFKA_RETENTION_HOURS": env.int("KAFKA_RETENTION_HOURS", 168, validate=POSITIVE),
        "KAFKA_UNSAFE_TOPICS": env.bool("KAFKA_UNSAFE_TOPICS", False),
        "KAFKA_GROUP_PROTOCOL": env.str(
            "KAFKA_GROUP_PROTOCOL", "classic", validate=validate.OneOf(["classic", "consumer"])
        ),
        "KAFKA_SESSION_TIMEOUT_MS": env.int(
            "KAFKA_SESSION_TIMEOUT_MS",
            tansu.SESSION_TIMEOUT_MS if embedded else 15_000,
            validate=validate.Range(1_000, 3_600_000),
        ),
        "KAFKA_MAX_POLL_INTERVAL_MS": env.int(
            "KAFKA_MAX_POLL_INTERVAL_MS", 300_000, validate=validate.Range(1, 86_400_000)
        ),
        "KAFKA_FETCH_WAIT_MS": env.int(
            "KAFKA_FETCH_WAIT_MS",
            tansu.FETCH_WAIT_MS if embedded else 500,
            validate=validate.Range(1, 30_000),
        ),
        "KAFKA_PUBLISH_TIMEOUT_MS": env.int(
            "KAFKA_PUBLISH_TIMEOUT_MS", 5_000, validate=validate.Range(1, 600_000)
        ),
        "KAFKA_LINGER_MS": env.int("KAFKA_LINGER_MS", 2, validate=validate.Range(0, 900_000)),
        "KAFKA_QUEUE_MAX_MESSAGES": env.int(
            "KAFKA_QUEUE_MAX_MESSAGES", 10_000, validate=validate.Range(1, 2_000_000_000)
        ),
    }


def _check_origins(values: dict[str, Any]) -> None:
    for origin in values["CORS_ALLOWED_ORIGINS"]:
        if not ORIGIN.fullmatch(origin):
            _refuse(
                f"CORS_ALLOWED_ORIGINS has {origin!r}, which is no origin as browsers send it, such as "
                "https://app.example or http://localhost:5173."
            )


def _check_lookup_rate(values: dict[str, Any]) -> None:
    number, _, _ = values["API_LOOKUP_RATE"].partition("/")
    if number and int(number) < MAX_LOOKUPS:
        _refuse(
            f"API_LOOKUP_RATE must not be below {MAX_LOOKUPS}: one request may name as many posts."
        )


def _check_timeouts(values: dict[str, Any]) -> None:
    if values["KAFKA_MAX_POLL_INTERVAL_MS"] < values["KAFKA_SESSION_TIMEOUT_MS"]:
        _refuse("KAFKA_MAX_POLL_INTERVAL_MS must not be below KAFKA_SESSION_TIMEOUT_MS.")
    if values["KAFKA_PUBLISH_TIMEOUT_MS"] <= values["KAFKA_LINGER_MS"]:
        _refuse("KAFKA_PUBLISH_TIMEOUT_MS must be above KAFKA_LINGER_MS.")


def _check_pruning(values: dict[str, Any]) -> None:
    days = values["PROCESSED_EVENTS_DAYS"]
    if days * 24 < values["KAFKA_RETENTION_HOURS"] + 24:
        _refuse(
            "PROCESSED_EVENTS_DAYS must exceed KAFKA_RETENTION_HOURS by a day, or Kafka repeats what was forgotten."
        )
    if values["IDEMPOTENCY_KEY_DAYS"] > days:
        _refuse(
            "IDEMPOTENCY_KEY_DAYS must not exceed PROCESSED_EVENTS_DAYS, or a repeated request has its effect twice."
        )
    if 0 < values["DEAD_LETTERS_DAYS"] < days:
        _refuse(
            "DEAD_LETTERS_DAYS must be 0 or not below PROCESSED_EVENTS_DAYS, or Kafka brings them back."
        )


def _check_lanes(values: dict[str, Any]) -> None:
    # Each event of a batch may lock a key. PostgreSQL has room for 64 locks times 100 connections,
    # unless told other.
    if values["FEED_FANOUT_LANES"] * values["FEED_BATCH_MAX_EVENTS"] > MAX_EVENTS_IN_HAND:
        _refuse(
            f"FEED_FANOUT_LANES times FEED_BATCH_MAX_EVENTS must not exceed {MAX_EVENTS_IN_HAND:,}, "
            "or one batch fills PostgreSQL's lock table."
        )


def _check_cell(values: dict[str, Any]) -> None:
    cell, cell_map = values["FEED_CELL"], cellmap.read(values["FEED_CELLS"])
    if cell and not cell_map.has_names:
        _refuse(f"There is no cell {cell}: FEED_CELLS is not set.")
    if cell and cell not in cell_map.places:
        _refuse(f"There is no cell {cell} in FEED_CELLS, which has {', '.join(cell_map.places)}.")
    for name, place in cell_map.places.items():
        if cell_map.has_names and not place.redis.startswith(REDIS_SCHEMES):
            _refuse(
                f"FEED_CELLS: The redis of cell {name} must start with redis://, rediss:// or unix://."
            )


def _check_kafka_security(values: dict[str, Any]) -> None:
    protocol, ca_file = values["KAFKA_SECURITY_PROTOCOL"], values["KAFKA_SSL_CA_LOCATION"]
    credentials = ("KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD")
    missing = [name for name in credentials if not values[name]]
    if protocol.startswith("SASL_") and missing:
        _refuse(f"KAFKA_SECURITY_PROTOCOL is {protocol}: set {' and '.join(missing)} too.")
    if not protocol.startswith("SASL_") and len(missing) < len(credentials):
        _refuse(
            "KAFKA_SASL_* is set, but without KAFKA_SECURITY_PROTOCOL=SASL_SSL or SASL_PLAINTEXT it is not used."
        )
    if ca_file and not Path(ca_file).exists():
        _refuse(f"KAFKA_SSL_CA_LOCATION names {ca_file}, which does not exist.")


def _refuse(sentence: str) -> NoReturn:
    raise ImproperlyConfigured(f"Wrong configuration: {sentence}")


def _pruning_settings(env: Env, retention_hours: int) -> dict[str, Any]:
    # Kafka deletes whole segments, so records live up to a day longer than the retention.
    days = 1 + math.ceil(retention_hours / 24)
    return {
        "PROCESSED_EVENTS_DAYS": env.int("PROCESSED_EVENTS_DAYS", days, validate=DAYS),
        "IDEMPOTENCY_KEY_DAYS": env.int("IDEMPOTENCY_KEY_DAYS", min(7, days), validate=DAYS),
        "DEAD_LETTERS_DAYS": env.int("DEAD_LETTERS_DAYS", 0, validate=validate.Range(0, 36_500)),
    }


def _is_embedded(variable: str, embedded: dict[str, str]) -> bool:
    return os.environ.get(variable, "") in ("", embedded.get(variable))


def _secret(env: Env, variable: str, data_dir: Path) -> str:
    """Return the secret given, or on the embedded stack one generated once and kept under
    `data_dir`.
    """
    given = env.str(variable, "")
    if given:
        if len(given.encode()) < 32:
            raise ImproperlyConfigured(f"{variable} must be at least 32 bytes long.")
        return given
    return _kept_secret(data_dir / variable.lower())


def _kept_secret(file: Path) -> str:
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48))
        _link_once(draft, file)
    return file.read_text()


def _link_once(draft: Path, file: Path) -> None:
    """Publish `draft` as `file` unless another process was faster: all then read the same
    secret.
    """
    try:
        file.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
