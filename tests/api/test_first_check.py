"""A process that has just started publishes nothing before it knows that the topics keep what a
`202` promises, and is not ready before it has ids to give.
"""

from collections.abc import Iterator

import httpx
import pytest
from pytest_django import Settings

from eventbus import kafka, producer
from eventbus.breaker import KAFKA
from eventbus.ids import clock, node_lease
from eventbus.ids.snowflake import NODES
from eventbus.models import SnowflakeNode
from feedsite.embedded.processes import free_port
from tests.api.server import ApiServer
from tests.e2e.system import wait_until
from tests.eventbus import broker
from tests.forwarder import Forwarder

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> str:
    """Have events published to a topic that somebody made such that an acknowledged write may be
    lost.
    """
    unsafe = {"unclean.leader.election.enable": "true"}
    name = broker.create_topic(settings.KAFKA_PARTITIONS, config=unsafe)
    broker.partitions_of(name)
    monkeypatch.setattr(kafka, "FEED_EVENTS", name)
    monkeypatch.setattr(kafka, "TOPICS", (name,))
    return name


@pytest.fixture
def kafka_address(settings: Settings) -> str:
    """Where the broker is, whatever the settings of this test say later."""
    kafka.create_topics()
    return str(settings.KAFKA_BOOTSTRAP_SERVERS)


@pytest.fixture
def allowed(settings: Settings) -> None:
    """Have unsafe topics written to all the same."""
    settings.KAFKA_UNSAFE_TOPICS = True


@pytest.fixture
def way_to_kafka(kafka_address: str, settings: Settings) -> Iterator[Forwarder]:
    """The way to the broker, which leads nowhere yet."""
    settings.KAFKA_PUBLISH_TIMEOUT_MS = 2_000
    way = Forwarder(free_port())
    settings.KAFKA_BOOTSTRAP_SERVERS = f"127.0.0.1:{way.port}"
    producer.close()
    yield way
    producer.close()
    way.close()


@pytest.fixture(params=["front on", "front off"])
def starting(request: pytest.FixtureRequest, way_to_kafka: Forwarder) -> Iterator[ApiServer]:
    """An API that was started while Kafka was away."""
    api = ApiServer(is_hot=request.param == "front on", wait_for="/healthz")
    yield api
    api.stop()
    producer.forbid("")
    KAFKA.succeeded()


def open_the_way(way: Forwarder, address: str) -> None:
    way.target = int(address.rpartition(":")[2])


def posted(api: ApiServer) -> httpx.Response:
    return api.client().post("/posts", b'{"content": "x"}')


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def test_nothing_is_published_before_the_first_check_nor_after_one_that_found_the_topics_unsafe(
    topic: str, kafka_address: str, way_to_kafka: Forwarder, starting: ApiServer
) -> None:
    answer = posted(starting)
    assert told(answer) == (503, "topics_unchecked")
    assert "Retry-After" in answer.headers
    ready = starting.client().get("/readyz")
    assert ready.status_code == 503
    open_the_way(way_to_kafka, kafka_address)
    wait_until(lambda: "may become the leader" in starting.client().get("/readyz").text)
    assert told(posted(starting)) == (503, "kafka_unavailable")
    assert broker.read_all(topic) == []


def test_a_process_that_started_without_kafka_heals_once_the_topics_are_found_safe(
    kafka_address: str, way_to_kafka: Forwarder, starting: ApiServer
) -> None:
    assert told(posted(starting)) == (503, "topics_unchecked")
    open_the_way(way_to_kafka, kafka_address)
    wait_until(lambda: starting.client().get("/readyz").status_code == 200)
    assert posted(starting).status_code == 202


def test_who_allows_unsafe_topics_waits_for_no_check(
    topic: str, allowed: None, kafka_address: str, way_to_kafka: Forwarder, starting: ApiServer
) -> None:
    assert told(posted(starting)) == (503, "kafka_unavailable")
    open_the_way(way_to_kafka, kafka_address)
    wait_until(lambda: posted(starting).status_code == 202)
    wait_until(lambda: starting.client().get("/readyz").status_code == 200)


@pytest.fixture
def without_ids() -> Iterator[ApiServer]:
    """An API that was started while others held all leases of ids."""
    hour_ms = 3_600_000
    nodes = [
        SnowflakeNode(node_id=number, leased_until_ms=clock.host_ms() + hour_ms)
        for number in range(NODES)
    ]
    SnowflakeNode.objects.all().delete()
    SnowflakeNode.objects.bulk_create(nodes)
    node_lease.forget()
    api = ApiServer(is_hot=True, wait_for="/healthz")
    yield api
    api.stop()


def test_a_process_is_ready_only_once_it_has_ids_to_give(without_ids: ApiServer) -> None:
    api = without_ids
    wait_until(lambda: "gives no ids: All 1024" in api.client().get("/readyz").text)
    assert api.client().get("/readyz").status_code == 503
    assert told(posted(api)) == (503, "database_unavailable")
    SnowflakeNode.objects.update(leased_until_ms=0)
    wait_until(lambda: api.client().get("/readyz").status_code == 200)
    assert posted(api).status_code == 202
