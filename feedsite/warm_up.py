"""Making what the first requests need before they come."""

import gc

import structlog
from django.urls import get_resolver

from eventbus import node_lease, producer
from eventbus.exceptions import IdsUnavailable

log = structlog.get_logger(__name__)


def warm_up() -> None:
    """Load the routes, connect to Kafka and lease a snowflake node: half a second or more for the first requests."""
    get_resolver().url_patterns  # noqa: B018 - loads all views
    producer.get()
    try:
        node_lease.next_id()
    except IdsUnavailable as error:
        log.warning("no_snowflake_node_yet", error=str(error))
    # What is loaded stays. Without this, each full collection would walk all of Django while every request waits.
    gc.collect()
    gc.freeze()
