"""The one settings module; every deployment difference comes from the environment
(`feedsite.environment`).
"""

import warnings
from datetime import timedelta
from typing import Any

from corsheaders.defaults import default_headers
from psycopg import IsolationLevel
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from eventbus import cellmap, cells
from feedsite import connections, environment, logs
from feedsite.postgresql import connection as postgresql

BASE_DIR = environment.BASE_DIR
ENV = environment.read()

FEED_DATA_DIR = ENV["FEED_DATA_DIR"]

# Web ----------------------------------------------------------------------------------------------
SECRET_KEY = ENV["DJANGO_SECRET_KEY"]
DEBUG = ENV["DJANGO_DEBUG"]
ALLOWED_HOSTS = ENV["DJANGO_ALLOWED_HOSTS"]
CSRF_TRUSTED_ORIGINS = ENV["DJANGO_CSRF_TRUSTED_ORIGINS"]
ROOT_URLCONF = "feedsite.urls"
WSGI_APPLICATION = "feedsite.wsgi.application"
APPEND_SLASH = False
DATA_UPLOAD_MAX_MEMORY_SIZE = 128 * 1024

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = ENV["DJANGO_HTTPS"]
SECURE_HSTS_SECONDS = 31_536_000 if ENV["DJANGO_HTTPS"] else 0
# For a whole domain, and for years: whoever has it decides.
SECURE_HSTS_INCLUDE_SUBDOMAINS = ENV["DJANGO_HSTS"] in ("subdomains", "preload")
SECURE_HSTS_PRELOAD = ENV["DJANGO_HSTS"] == "preload"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Probes and scrapes come from inside, without TLS.
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "feedsite.errors.form_expired"
# A working day; a browser that is closed ends it before.
SESSION_COOKIE_AGE = 8 * 3_600
SESSION_EXPIRE_AT_BROWSER_CLOSE = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "corsheaders",
    "django_prometheus",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "feedsite",
    "eventbus",
    "posts",
    "feeds",
]

MIDDLEWARE = [
    *(["feedsite.middleware.CellOfRequest"] if ENV["FEED_CELLS"] else []),
    "feedsite.middleware.RequestMetrics",
    *(["feedsite.middleware.RequestSpans"] if ENV["OTEL_TRACES_EXPORTER"] != "none" else []),
    "feedsite.middleware.RequestIds",
    "feedsite.middleware.CrossOrigin",
    "django.middleware.security.SecurityMiddleware",
    "feedsite.middleware.PagePolicy",
    "feedsite.middleware.PageWhiteNoise",
    "feedsite.middleware.PageInput",
    "feedsite.middleware.PageSessions",
    "feedsite.middleware.PageCommon",
    "django.middleware.csrf.CsrfViewMiddleware",
    "feedsite.middleware.PageAuthentication",
    "feedsite.middleware.PageMessages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "feedsite.middleware.PageLockOut",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# The admin's login: see feedsite/login.py
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
TRUSTED_PROXIES = ENV["TRUSTED_PROXIES"]
AXES_HANDLER = "feedsite.login.Attempts"
AXES_USERNAME_CALLABLE = "feedsite.login.username"
AXES_CLIENT_IP_CALLABLE = "feedsite.login.client_address"
AXES_LOCKOUT_CALLABLE = "feedsite.login.locked_out"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=5)
# Attempts while locked out must not make it longer: a forgotten script would lock its owner out for
# ever.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
SILENCED_SYSTEM_CHECKS = [
    # Its middleware is there, under the name that skips the API.
    "axes.W002",
    # Subdomains and the browsers' own list are a choice, see DJANGO_HSTS.
    "security.W005",
    "security.W021",
    # Django 6 asks for its app for PostgreSQL where there is an array. That would look for types
    # that nobody uses here at the first connection of each process.
    "postgres.E005",
]

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
WHITENOISE_USE_FINDERS = True
# Where nothing was collected, the finders serve the files; that is no news.
warnings.filterwarnings("ignore", message="No directory at", module="django.core.handlers.base")
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False
# Times in ISO 8601: no page leaves open which number is the month, or whose time it is.
FORMAT_MODULE_PATH = ["feedsite.formats"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Browsers on pages of other sites. Tokens travel in a header of their own, so no cookie need be let
# through; pages for people and what is for operators stay closed.
CORS_ALLOWED_ORIGINS = ENV["CORS_ALLOWED_ORIGINS"]
CORS_URLS_REGEX = r"^/(?!admin|cells|docs|static|metrics|healthz|readyz)"
CORS_ALLOW_HEADERS = (
    *default_headers,
    "idempotency-key",
    "last-event-id",
    "traceparent",
    "tracestate",
    "x-request-id",
)
CORS_EXPOSE_HEADERS = (
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Cache",
    "X-Request-ID",
)

# REST ---------------------------------------------------------------------------------------------
REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["feedsite.authentication.JWTAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["feedsite.api.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["feedsite.api.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "feedsite.openapi.Schema",
    "EXCEPTION_HANDLER": "feedsite.api.exception_handler",
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "feedsite.api.AlwaysJSON",
    "UNAUTHENTICATED_USER": None,
}
API_POST_RATE = ENV["API_POST_RATE"]
API_LOOKUP_RATE = ENV["API_LOOKUP_RATE"]
# Spans are made by Django's middleware.
API_FRONT = ENV["API_FRONT"] and ENV["OTEL_TRACES_EXPORTER"] == "none"
API_VISIBILITY = ENV["API_VISIBILITY"]
BLOCKING_THREADS = ENV["BLOCKING_THREADS"]
LIVE_MAX_STREAMS = ENV["LIVE_MAX_STREAMS"]
HTTP_BODY_SECONDS = ENV["HTTP_BODY_SECONDS"]
HTTP_SEND_SECONDS = ENV["HTTP_SEND_SECONDS"]
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Feed backend",
    "DESCRIPTION": "Posts, follows and feeds. Writes answer 202 once Kafka has acknowledged them. "
    "For operators: the [admin](/admin/).",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "POSTPROCESSING_HOOKS": ["feedsite.openapi.finish"],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    # Else the body of an edit is called `PatchedEditPost`.
    "COMPONENT_SPLIT_PATCH": False,
    # As in posts/converters.py
    "PATH_CONVERTER_OVERRIDES": {"id": {"type": "string", "pattern": "^[1-9][0-9]{0,18}$"}},
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

JWT_SIGNING_KEY = ENV["JWT_SIGNING_KEY"]
JWT_PUBLIC_KEY = ENV["JWT_PUBLIC_KEY"]
JWT_JWKS_URL = ENV["JWT_JWKS_URL"]
JWT_AUDIENCE = ENV["JWT_AUDIENCE"]
JWT_ISSUER = ENV["JWT_ISSUER"]

# Cells --------------------------------------------------------------------------------------------
FEED_CELLS = cellmap.read(ENV["FEED_CELLS"])
FEED_CELLS_FILE = cellmap.file_of(ENV["FEED_CELLS"])
# The cell of this process; where that has none, as the API, the one that ids come from.
FEED_CELL = ENV["FEED_CELL"] or FEED_CELLS.ids

# PostgreSQL ---------------------------------------------------------------------------------------
DATABASE_ROUTERS = ["eventbus.cells.Router"]
DATABASE_SESSION = " ".join(
    [
        # A worker that freezes inside a transaction must not hold its locks for ever.
        "-c idle_in_transaction_session_timeout=60000",
        "-c lock_timeout=30000",
        # What was committed must survive, whatever the server's own default.
        "-c synchronous_commit=on",
        # Whoever has stopped waiting for an answer gives the server no more to do.
        "-c client_connection_check_interval=2000",
    ]
)


def _database(url: str, source: str) -> dict[str, Any]:
    """Return how connections to the PostgreSQL at `url` are made."""
    address = environment.database(url, source)
    of_url = address.get("OPTIONS", {})
    options = {
        "connect_timeout": 5,  # seconds
        # Of several hosts, and after a failover, the one that can be written to.
        "target_session_attrs": "read-write",
        # A server that vanished without a word is noticed within about 15 s.
        "keepalives_idle": 5,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,  # milliseconds
        "isolation_level": IsolationLevel.READ_COMMITTED,
        **of_url,
        # The last -c wins, so those of the URL do.
        "options": f"{DATABASE_SESSION} {of_url.get('options', '')}".rstrip(),
        "pool": {
            "connection_class": postgresql.Connection,
            "min_size": 1,
            "max_size": ENV["DATABASE_POOL_MAX"],
            "timeout": 5,  # seconds
            "max_idle": 60,  # seconds
            # The pool tries again ever more rarely for so long; after that, at the next request.
            # Its default of 300 s would keep a process down for a minute after an outage of a
            # minute.
            "reconnect_timeout": 2,  # seconds
        },
    }
    return {
        **address,
        "ENGINE": "feedsite.postgresql",
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": options,
    }


if FEED_CELLS.has_names:
    DATABASES = {
        cells.alias_of(name, FEED_CELL): _database(place.database, f"FEED_CELLS: cell {name}")
        for name, place in FEED_CELLS.places.items()
    }
else:
    DATABASES = {
        "default": _database(
            ENV["DATABASE_URL"] or "postgresql://embedded-servers-not-started/feed", "DATABASE_URL"
        )
    }
DATABASE_POOL_MAX = ENV["DATABASE_POOL_MAX"]
CONNECTIONS_NEEDED = connections.needs(ENV, has_cells=FEED_CELLS.has_names)
# For how long a request may wait for PostgreSQL, in seconds.
DATABASE_ANSWER_SECONDS = 5.0

# Redis --------------------------------------------------------------------------------------------
REDIS_TIMEOUT = 0.5  # seconds


def _cache(url: str) -> dict[str, Any]:
    """Return how connections to the Redis at `url` are made."""
    return {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": url,
        "KEY_PREFIX": "feed",
        "OPTIONS": {
            "SOCKET_CONNECT_TIMEOUT": REDIS_TIMEOUT,
            "SOCKET_TIMEOUT": REDIS_TIMEOUT,
            "IGNORE_EXCEPTIONS": True,
            # A failure must be noticed, not tried again behind our back: see feeds.read.era.
            # And no connection need ask for news that one vendor's Redis alone has.
            "CONNECTION_POOL_KWARGS": {
                "retry": Retry(NoBackoff(), 0),
                "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            },
        },
    }


if FEED_CELLS.has_names:
    CACHES = {
        cells.alias_of(name, FEED_CELL): _cache(place.redis)
        for name, place in FEED_CELLS.places.items()
    }
else:
    CACHES = {"default": _cache(ENV["REDIS_URL"] or "redis://embedded-servers-not-started")}

# Kafka --------------------------------------------------------------------------------------------
KAFKA_BOOTSTRAP_SERVERS = ENV["KAFKA_BOOTSTRAP_SERVERS"]
KAFKA_SECURITY = {
    "security.protocol": ENV["KAFKA_SECURITY_PROTOCOL"],
    "sasl.mechanism": ENV["KAFKA_SASL_MECHANISM"],
    "sasl.username": ENV["KAFKA_SASL_USERNAME"],
    "sasl.password": ENV["KAFKA_SASL_PASSWORD"],
    "ssl.ca.location": ENV["KAFKA_SSL_CA_LOCATION"],
}
KAFKA_PARTITIONS = ENV["KAFKA_PARTITIONS"]
KAFKA_REPLICATION_FACTOR = ENV["KAFKA_REPLICATION_FACTOR"]
KAFKA_RETENTION_HOURS = ENV["KAFKA_RETENTION_HOURS"]
KAFKA_UNSAFE_TOPICS = ENV["KAFKA_UNSAFE_TOPICS"]
KAFKA_GROUP_PROTOCOL = ENV["KAFKA_GROUP_PROTOCOL"]
KAFKA_SESSION_TIMEOUT_MS = ENV["KAFKA_SESSION_TIMEOUT_MS"]
KAFKA_MAX_POLL_INTERVAL_MS = ENV["KAFKA_MAX_POLL_INTERVAL_MS"]
KAFKA_FETCH_WAIT_MS = ENV["KAFKA_FETCH_WAIT_MS"]
KAFKA_PUBLISH_TIMEOUT_MS = ENV["KAFKA_PUBLISH_TIMEOUT_MS"]
KAFKA_LINGER_MS = ENV["KAFKA_LINGER_MS"]
KAFKA_QUEUE_MAX_MESSAGES = ENV["KAFKA_QUEUE_MAX_MESSAGES"]

# Feeds --------------------------------------------------------------------------------------------
FEED_STRATEGY = ENV["FEED_STRATEGY"]
FEED_PUSH_MAX_FOLLOWERS = ENV["FEED_PUSH_MAX_FOLLOWERS"]
FEED_MAX_ENTRIES = ENV["FEED_MAX_ENTRIES"]
FEED_FANOUT_LANES = ENV["FEED_FANOUT_LANES"]
FEED_BATCH_MAX_EVENTS = ENV["FEED_BATCH_MAX_EVENTS"]
FEED_BATCH_MAX_WAIT_MS = ENV["FEED_BATCH_MAX_WAIT_MS"]
FEED_BATCH_MAX_ROWS = ENV["FEED_BATCH_MAX_ROWS"]
FEED_PARTITION_ROWS = ENV["FEED_PARTITION_ROWS"]
FEED_PARTITIONS = ENV["FEED_PARTITIONS"]
FEED_IDLE_DAYS = ENV["FEED_IDLE_DAYS"]
FEED_CACHE_TTL = ENV["FEED_CACHE_TTL"]
FEED_CACHE_MAX_TTL = environment.MAX_CACHE_TTL

# Dead letters -------------------------------------------------------------------------------------
DLQ_FLOOD_COUNT = ENV["DLQ_FLOOD_COUNT"]
DLQ_FLOOD_SECONDS = ENV["DLQ_FLOOD_SECONDS"]
DLQ_MAX_REPLAYS = ENV["DLQ_MAX_REPLAYS"]

# Pruning ------------------------------------------------------------------------------------------
PROCESSED_EVENTS_DAYS = ENV["PROCESSED_EVENTS_DAYS"]
IDEMPOTENCY_KEY_DAYS = ENV["IDEMPOTENCY_KEY_DAYS"]
DEAD_LETTERS_DAYS = ENV["DEAD_LETTERS_DAYS"]

# Workers ------------------------------------------------------------------------------------------
WORKER_STUCK_SECONDS = ENV["WORKER_STUCK_SECONDS"]

# Logs and traces ----------------------------------------------------------------------------------
LOG_FORMAT = ENV["LOG_FORMAT"]
OTEL_TRACES_EXPORTER = ENV["OTEL_TRACES_EXPORTER"]
LOGGING = logs.configure(LOG_FORMAT, ENV["LOG_LEVEL"])

PROMETHEUS_EXPORT_MIGRATIONS = False
