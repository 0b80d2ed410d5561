"""Making what the first requests need before they come."""

import gc

import structlog
from django.conf import settings
from django.urls import get_resolver

from eventbus import node_lease, producer
from eventbus.exceptions import IdsUnavailable
from feedsite import checks, keys

log = structlog.get_logger(__name__)


def warm_up() -> None:
    """Load the routes, connect to Kafka and lease a snowflake node: half a second or more for the first requests."""
    get_resolver().url_patterns  # noqa: B018 - loads all views
    producer.get()
    _fetch_keys()
    try:
        node_lease.next_id()
    except IdsUnavailable as error:
        log.warning("no_snowflake_node_yet", error=str(error))
    # What is loaded stays. Without this, each full collection would walk all of Django while every request waits.
    gc.collect()
    gc.freeze()


def _fetch_keys() -> None:
    """Have the key set fetched while the rest is being made ready."""
    if settings.JWT_JWKS_URL:
        keys.key_set(settings.JWT_JWKS_URL)
    if not checks.tokens_have_an_audience():
        log.warning("no_audience", detail="JWT_AUDIENCE is not set: tokens issued for others are taken.")
