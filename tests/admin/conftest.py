"""Fixtures of the admin's tests."""

from tests.eventbus.conftest import feed_events, quick_joins

__all__ = ["feed_events", "quick_joins"]
