"""The API for the tests of its HTTP interface, each of which runs with the front on and off."""

import threading
from collections.abc import Iterator

import pytest
from pytest_django import DjangoDbBlocker

from eventbus import breaker, cells, kafka, producer
from feeds.models import CacheState
from tests.api.server import ApiServer, Current


# Not for the whole session: its threads name the Redis that counts, and other tests have one of
# their own.
@pytest.fixture(scope="module")
def servers(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[dict[str, ApiServer]]:
    kafka.create_topics()
    # Their threads ask the database between tests too.
    with django_db_blocker.unblock():
        found = {"front on": ApiServer(is_hot=True), "front off": ApiServer(is_hot=False)}
        yield found
        for server in found.values():
            server.stop()
        for thread in threading.enumerate():
            if thread.name == "cache-era":
                thread.join(10)
        CacheState.objects.all().delete()
        producer.close()


@pytest.fixture(params=["front on", "front off"])
def api(request: pytest.FixtureRequest, servers: dict[str, ApiServer]) -> Iterator[ApiServer]:
    """The API, once with its front and once by Django alone."""
    yield servers[request.param]
    for one in (breaker.KAFKA, *breaker.of(cells.own())):
        one.succeeded()


@pytest.fixture
def current_api(api: ApiServer) -> None:
    Current.api = api
