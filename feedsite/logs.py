"""Logging for every process: structlog over the standard library, one line an event, JSON or
console.
"""

import logging
import os
import sys
from http import HTTPStatus
from typing import Any

import structlog

from eventbus.terminal import visible
from feedsite.outage_lines import OutageLines

SHARED: list[structlog.types.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


MAX_REFUSAL_CHARS = 300


class RefusalsInOneLine(logging.Filter):
    """Takes the traceback from what Django says of a request that it refuses or cannot serve now:
    the code is not to blame. That of a 500 stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and let it pass."""
        status = getattr(record, "status_code", HTTPStatus.INTERNAL_SERVER_ERROR)
        if not record.name.startswith("django.") or status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return True
        text = record.getMessage()
        if record.name != "django.request":  # which names the path itself
            request = getattr(record, "request", None)
            text = f"{text} {getattr(request, 'path', '')}".rstrip()
        record.msg, record.args, record.exc_info = text[:MAX_REFUSAL_CHARS], None, None
        return True


def configure(log_format: str, level: str) -> dict[str, Any]:
    """Configure structlog and return Django's `LOGGING` dict; both write the same lines to
    stderr.
    """
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Below the level, a log call costs next to nothing.
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        cache_logger_on_first_use=True,
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_renderers(log_format),
                ],
                "foreign_pre_chain": SHARED,
            }
        },
        "filters": {
            "refusals": {"()": RefusalsInOneLine},
            "outages": {"()": OutageLines},
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "filters": ["refusals", "outages"],
            }
        },
        "root": {"handlers": ["stderr"], "level": level},
        # A 4xx is the client's business and already counted; Django's own access lines would drown
        # the log. SQL with its parameters, at DEBUG, would put what people wrote into the log. What
        # django-axes says, feedsite.login says in one line. Why the pool has no connection is said
        # by whoever waits for one (feedsite.postgresql).
        "loggers": {
            "django.request": {"level": "ERROR"},
            "django.db.backends": {"level": "INFO"},
            "axes": {"level": "ERROR"},
            "psycopg.pool": {"level": "ERROR"},
        },
    }


def _renderers(log_format: str) -> list[structlog.types.Processor]:
    if log_format == "json":
        return [structlog.processors.JSONRenderer()]
    return [_make_visible, structlog.dev.ConsoleRenderer(colors=_shows_colours())]


def _shows_colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _make_visible(
    _logger: Any, _name: str, fields: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Escape control characters: some lines name what Kafka or a client has sent."""
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = visible(value, keep="\n\t" if name == "exception" else "")
    return fields
