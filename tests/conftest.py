"""What every test can rely on."""

import os
from collections.abc import Iterator

import pytest

from eventbus import producer
from eventbus.ids import clock, node_lease
from feeds.read import here, near_cache

LONG_PATIENCE_SECONDS = 5.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have several processes begin with the tests that take longest: else one of them ends long
    after the others.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_servers(django_db_setup: None) -> Iterator[None]:
    """Give the producer and the snowflake lease back while there are servers to tell."""
    yield
    producer.close()
    node_lease.forget()


@pytest.fixture(autouse=True)
def a_lease_of_this_test() -> Iterator[None]:
    """Drop the snowflake lease with the test: emptying the tables gives its node to anyone who
    asks.

    The clock that it was made by goes too, for some tests set it wrong.
    """
    yield
    node_lease.forget()
    clock.forget()


@pytest.fixture(autouse=True)
def a_cache_of_this_test() -> None:
    """Forget the state of the cache, which this process trusts for a second: the tables may be
    other ones by then.
    """
    here.trust.forget()


@pytest.fixture(autouse=True)
def patience_with_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an event loop of this process wait for Redis although the machine is busy: on it, what
    comes from the cache would else be a matter of luck.
    """
    monkeypatch.setattr(near_cache, "PATIENCE_SECONDS", LONG_PATIENCE_SECONDS)
