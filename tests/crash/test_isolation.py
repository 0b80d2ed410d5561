"""One server stands still, as long as it likes: what does not need it goes on, what does is
refused, and all heals.
"""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest

from eventbus import kafka
from feeds.models import CacheState
from feeds.read.era import TRUST_SECONDS
from feedsite.embedded.kafka import KAFKA
from feedsite.embedded.postgres import POSTGRES
from feedsite.embedded.valkey import VALKEY
from tests.crash import outages
from tests.crash.network import Network
from tests.crash.outages import frozen
from tests.e2e.system import wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        any(os.environ.get(server.variable) for server in (KAFKA, POSTGRES, VALKEY)),
        reason="freezes the embedded servers, and others are in use",
    ),
]

AWAY = 9.0  # seconds; more than any time-out of a request
# A request that had to wait for a frozen server would take several seconds.
AT_ONCE = 4.0
ASKERS = 12


@dataclass
class Asked:
    """What one kind of request got: answers by status and code, and the longest wait in seconds."""

    answers: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    last: str = ""
    last_took: float = 0.0

    def note(self, answer: httpx.Response, seconds: float) -> None:
        is_error = (
            answer.status_code >= 400 and answer.headers["content-type"] == "application/json"
        )
        code = answer.json()["code"] if is_error else ""
        self.last, self.last_took = f"{answer.status_code} {code}".strip(), seconds
        self.answers[self.last] += 1
        self.longest = max(self.longest, seconds)


class Askers:
    """Threads that ask for the same again and again, each on a connection of its own, until the end
    of `with`.
    """

    def __init__(
        self, network: Network, threads: int, method: str, path: str, **arguments: object
    ) -> None:
        self.asked = Asked()
        self._network = network
        self._request = (method, path, arguments)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> "Askers":
        """Return when each of them has had an answer: to start so many takes a while on a busy
        machine.
        """
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.asked.answers.total() > 2 * len(self._threads))
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        method, path, arguments = self._request
        with self._network.system.client(self._network.authors[0], scope="feeds:read") as client:
            while not self._stopping.is_set():
                began = time.monotonic()
                answer = client.request(method, path, **arguments)  # type: ignore[arg-type]
                self.asked.note(answer, time.monotonic() - began)
                self._stopping.wait(0.05)


def healthz(network: Network) -> Askers:
    return Askers(network, 1, "GET", "/healthz")


def cached_feed(network: Network) -> Askers:
    return Askers(network, 2, "GET", f"/feeds/{network.followers[0]}")


def uncached_list(network: Network, threads: int = 1) -> Askers:
    return Askers(network, threads, "GET", f"/users/{network.authors[0]}/posts")


def posts(network: Network, threads: int = 1) -> Askers:
    return Askers(network, threads, "POST", "/posts", json={"content": "x"})


def follows(network: Network, threads: int) -> Askers:
    return Askers(network, threads, "PUT", f"/follows/{network.followers[0]}")


def assert_undisturbed(*undisturbed: Askers) -> None:
    for askers in undisturbed:
        assert set(askers.asked.answers) <= {"200", "202"}, askers.asked
        assert askers.asked.longest < AT_ONCE, askers.asked


def warm(network: Network) -> None:
    """Have the feeds in the cache, which the import of the follows has closed for a moment."""
    network.look()
    wait_until(lambda: CacheState.objects.filter(closed_at=None).exists())
    time.sleep(2 * TRUST_SECONDS)  # until no process takes it to be closed any more
    network.look()
    with network.system.client(network.followers[0]) as client:
        wait_until(lambda: client.get(f"/feeds/{network.followers[0]}").headers["X-Cache"] == "hit")


def test_kafka_stands_still_under_writes(network: Network) -> None:
    warm(network)
    with (
        healthz(network) as alive,
        cached_feed(network) as cached,
        uncached_list(network) as listed,
        posts(network, ASKERS) as posted,
        follows(network, ASKERS) as followed,
    ):
        with frozen(KAFKA):
            time.sleep(AWAY)
            for refused in (posted.asked, followed.asked):
                wait_until(lambda: refused.answers["503 kafka_unavailable"] > 4 * ASKERS)  # noqa: B023
            metrics = httpx.get(f"{network.system.url}/metrics").text
            assert 'breaker_open{server="kafka"} 1.0' in metrics
            assert httpx.get(f"{network.system.url}/readyz").status_code == 503
        wait_until(lambda: posted.asked.last == followed.asked.last == "202")
    assert_undisturbed(alive, cached, listed)
    wait_until(lambda: httpx.get(f"{network.system.url}/readyz").status_code == 200)


def test_postgresql_stands_still_under_reads(network: Network) -> None:
    warm(network)
    with (
        healthz(network) as alive,
        cached_feed(network) as cached,
        posts(network) as posted,
        uncached_list(network, 3 * ASKERS) as listed,
    ):
        with frozen(POSTGRES):
            time.sleep(AWAY)
            wait_until(lambda: listed.asked.answers["503 database_unavailable"] > 8 * ASKERS)
            assert httpx.get(f"{network.system.url}/readyz").status_code == 503
        wait_until(lambda: listed.asked.last == "200")
    assert_undisturbed(alive)
    # Where Redis stumbles on a busy machine a view is asked, which may wait for a thread; it
    # answers all the same.
    assert set(cached.asked.answers) == {"200"}, cached.asked
    # The first lease of a process, by which ids are minted, is for 10 s.
    assert 2 * posted.asked.answers["202"] > posted.asked.answers.total(), posted.asked
    wait_until(lambda: httpx.get(f"{network.system.url}/readyz").status_code == 200)


def test_redis_stands_still_under_reads(network: Network) -> None:
    warm(network)
    with (
        healthz(network) as alive,
        posts(network) as posted,
        uncached_list(network) as listed,
        cached_feed(network) as cached,
    ):
        with frozen(VALKEY):
            time.sleep(AWAY)
            assert "redis: degraded" in httpx.get(f"{network.system.url}/readyz").text
        client = network.system.client(network.followers[0])
        path = f"/feeds/{network.followers[0]}"
        wait_until(lambda: client.get(path).headers["X-Cache"] == "hit")
    assert_undisturbed(alive, posted, listed, cached)


def test_the_broker_is_wiped_and_started_anew_under_posts(network: Network) -> None:
    """Its clients know a broker that no longer knows them; nobody is restarted."""
    with posts(network, 4) as posted:
        wait_until(lambda: posted.asked.last == "202")
        broker = outages.EmbeddedServer(KAFKA)
        broker.kill()
        time.sleep(3.0)
        broker.start()
        kafka.create_topics()
        wait_until(lambda: posted.asked.last == "202")
        accepted = posted.asked.answers["202"]
        wait_until(lambda: posted.asked.answers["202"] > accepted + 20)
    wait_until(lambda: httpx.get(f"{network.system.url}/readyz").status_code == 200)


def test_a_producer_that_kafka_has_fenced_is_replaced(network: Network) -> None:
    """The embedded broker does that to a producer with a post in flight, when it has stood still
    for a while.
    """
    for _ in range(2):
        with posts(network, 2) as posted:
            wait_until(lambda: posted.asked.last == "202")
            with frozen(KAFKA):
                time.sleep(7.0)
            wait_until(lambda: posted.asked.last == "202")


def test_an_api_starts_without_any_server_and_heals(network: Network) -> None:
    """Start-up waits for nobody: the process lives, says what it lacks, and takes up work as each
    server comes.
    """
    system = network.system
    system.processes[0].kill()
    with frozen(KAFKA), frozen(POSTGRES), frozen(VALKEY):
        system.api(wait_for="healthz")
        assert httpx.get(f"{system.url}/readyz").status_code == 503
    wait_until(lambda: httpx.get(f"{system.url}/readyz").status_code == 200)
    with posts(network) as posted, uncached_list(network) as listed:
        wait_until(lambda: posted.asked.last == "202" and listed.asked.last == "200")
