"""Making what the first requests need before they come."""

import gc

import structlog
from django.conf import settings
from django.urls import get_resolver

from feedsite import checks, keys

log = structlog.get_logger(__name__)


def warm_up() -> None:
    """Load all views, which the first request would wait for, and begin to fetch the keys; waits for no server."""
    get_resolver().url_patterns  # noqa: B018 - loads all views
    if settings.JWT_JWKS_URL:
        keys.key_set(settings.JWT_JWKS_URL)
    if not checks.tokens_have_an_audience():
        log.warning("no_audience", detail="JWT_AUDIENCE is not set: tokens issued for others are taken.")
    # What is loaded stays. Without this, each full collection would walk all of Django while every request waits.
    gc.collect()
    gc.freeze()
