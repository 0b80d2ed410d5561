"""Making what the first requests need before they come."""

import gc

from django.urls import get_resolver


def warm_up() -> None:
    """Load all views, which the first request would wait for; asks no server anything."""
    get_resolver().url_patterns  # noqa: B018 - loads all views
    # What is loaded stays. Without this, each full collection would walk all of Django while every request waits.
    gc.collect()
    gc.freeze()
