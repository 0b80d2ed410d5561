"""A Redis that fails over: whoever is restarted or not, no page from before a change is shown after
it, and all heals.

Two Valkeys, the second a replica of the first, behind one address that leads to the first. A
*process* here is what one has of its own: connections, and what it knows of the cache.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.db import OperationalError

from feeds.announcements import Change
from feeds.live import Found, Hearing, Wanted
from feeds.models import CacheState
from feeds.read import era, here
from feeds.read.era import Trust
from feeds.read.page import CachedPage
from feeds.read.pages import Pages
from tests.e2e.system import wait_until
from tests.feeds.looped import LoopedNearCache
from tests.feeds.valkeys import Server, client_at
from tests.forwarder import Forwarder

pytestmark = pytest.mark.django_db(transaction=True)

HEALED_WITHIN = 8.0


class Process:
    """One process of the API or of the workers, as far as the cache is concerned."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.restart()

    def restart(self) -> None:
        self.trust = Trust(client_at(self._port).connection_pool)
        self.pages = Pages(self.trust)

    def invalidate(self, user: int) -> None:
        self.pages.invalidate([user])

    def read(self, user: int, page: bytes) -> str:
        """Read as the API does, `page` being what PostgreSQL has; return what was shown and how it
        was had.
        """
        lookup = self.pages.look_up(user)
        if lookup.page:
            return f"hit {lookup.page.body.decode()}"
        self.pages.store(lookup, CachedPage(b"", page))
        return f"{lookup.result} {page.decode()}"


@dataclass
class Two:
    """Two servers, an address, and the processes that use it."""

    old: Server
    new: Server
    address: Forwarder

    def process(self) -> Process:
        return Process(self.address.port)

    def fail_over(self, kind: str) -> None:
        """Have the second one take over.

        The first is demoted, or does not know; both go on answering.
        """
        self.new.client().replicaof("NO", "ONE")
        if kind == "planned":
            self.old.client().replicaof("127.0.0.1", self.new.port)
            wait_until(lambda: self.old.client().info("replication")["role"] == "slave")
        self.address.target = self.new.port


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    directories = [tmp_path / "old", tmp_path / "new"]
    for directory in directories:
        directory.mkdir()
    old, new = (Server(directory) for directory in directories)
    address = Forwarder(old.port)
    two = Two(old, new, address)
    new.client().replicaof("127.0.0.1", old.port)
    wait_until(lambda: new.client().info("replication")["master_link_status"] == "up")
    yield two
    address.close()
    old.remove()
    new.remove()


RESTARTED = ["the worker", "the reader", "both", "nobody"]


@pytest.mark.parametrize("restarted", RESTARTED)
@pytest.mark.parametrize("kind", ["planned", "unplanned"])
def test_no_outdated_page_through_a_failover_and_pages_are_cached_again_after_it(
    two: Two, kind: str, restarted: str
) -> None:
    reader, worker = two.process(), two.process()
    reader.read(1, b"old")
    assert reader.read(1, b"") == "hit old"
    two.fail_over(kind)
    for name, process in (("the worker", worker), ("the reader", reader)):
        if restarted in (name, "both"):
            process.restart()
    worker.invalidate(1)
    assert reader.read(1, b"new").endswith(" new")
    wait_until(lambda: reader.read(1, b"new") == "hit new", HEALED_WITHIN)
    worker.invalidate(1)
    assert reader.read(1, b"newest").endswith(" newest")
    wait_until(lambda: reader.read(1, b"newest") == "hit newest", HEALED_WITHIN)
    if kind == "planned" or restarted != "nobody":
        assert two.new.client().exists(*two.new.client().scan_iter("feed:{1}:*"))


@pytest.mark.parametrize("kind", ["planned", "unplanned"])
def test_a_loop_that_keeps_pages_follows_a_failover(two: Two, kind: str) -> None:
    reader, worker = two.process(), two.process()
    reader.read(1, b"old")
    loop = LoopedNearCache(reader.trust)
    found = loop.find(1)
    assert found
    assert found.body == b"old"
    two.fail_over(kind)
    worker.restart()
    worker.invalidate(1)
    assert loop.find(1) is None
    wait_until(lambda: reader.read(1, b"new") == "hit new", HEALED_WITHIN)
    wait_until(lambda: loop.find(1) is not None, HEALED_WITHIN)
    found = loop.find(1)
    assert found
    assert found.body == b"new"
    worker.invalidate(1)
    wait_until(
        lambda: loop.find(1) is None, 1
    )  # its announcement takes the way through the forwarder
    loop.close()


class Heard:
    """What the live streams of a process hear; each of its users has one."""

    def __init__(self, users: set[int]) -> None:
        self._users = users
        self.changes: list[Change] = []
        self.is_hearing = False

    def open_feeds(self) -> set[int]:
        return self._users

    def announced(self, changes: Sequence[Change]) -> None:
        self.changes += changes

    def missed(self) -> None: ...

    def heard(self, is_hearing: bool) -> None:
        self.is_hearing = is_hearing

    def found(self, found: dict[Wanted, Found], asked_at: float) -> None: ...


@pytest.mark.parametrize("kind", ["planned", "unplanned"])
def test_live_streams_hear_the_redis_that_counts_through_a_failover(
    two: Two, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, worker = two.process(), two.process()
    monkeypatch.setattr(here, "trust", reader.trust)
    heard = Heard({1})
    hearing = Hearing(heard)

    def is_told(post: int) -> bool:
        """Have a post announced, and tell whether it has been heard of."""
        worker.pages.invalidate([1], changes=[Change([1], 0, [post])])
        reader.trust.refresh()
        hearing.turn()
        return any(post in change.post_ids for change in heard.changes)

    wait_until(lambda: is_told(1), HEALED_WITHIN)
    two.fail_over(kind)
    worker.restart()
    wait_until(lambda: is_told(2), HEALED_WITHIN)
    assert heard.is_hearing
    hearing.close()


def test_a_master_that_was_a_replica_in_between_is_another_one(two: Two) -> None:
    reader = two.process()
    reader.read(1, b"old")
    old = two.old.client()
    old.replicaof("127.0.0.1", two.new.port)
    old.replicaof("NO", "ONE")  # it may have lost what the other one was not told in time
    reader.trust.refresh()
    assert reader.read(1, b"new") == "bypass new"
    wait_until(lambda: reader.read(1, b"new") == "hit new", HEALED_WITHIN)


def test_a_replica_is_no_redis_to_trust(two: Two) -> None:
    two.address.target = two.new.port
    reader = two.process()
    assert [reader.read(1, b"page") for _ in range(2)] == ["bypass page", "bypass page"]
    two.address.target = two.old.port
    wait_until(lambda: reader.read(1, b"page") == "hit page", HEALED_WITHIN)


def test_a_replica_that_may_be_written_to_hides_no_change(two: Two) -> None:
    reader, worker = two.process(), two.process()
    reader.read(1, b"old")
    worker.invalidate(2)
    two.old.client().config_set("replica-read-only", "no")
    two.fail_over("planned")
    two.address.target = two.old.port  # which takes writes, and loses them
    worker.invalidate(1)
    assert CacheState.objects.get().closed_at is not None
    assert reader.read(1, b"new") == "bypass new"


def test_a_redis_that_is_full_is_left_alone(two: Two) -> None:
    reader, worker = two.process(), two.process()
    reader.read(1, b"page")
    full = two.old.client()
    full.config_set("maxmemory-policy", "noeviction")
    full.config_set("maxmemory", "1")
    assert reader.read(2, b"page") == "bypass page"
    worker.pages.invalidate([], authors=[7])
    time.sleep(era.CLOSED_AT_LEAST_SECONDS)
    reader.trust.refresh()
    assert CacheState.objects.get().closed_at is not None
    full.config_set("maxmemory", "0")
    wait_until(lambda: reader.read(1, b"page") == "hit page", HEALED_WITHIN)


def test_a_redis_that_stays_away_delays_a_worker_once(two: Two) -> None:
    reader, worker, another = two.process(), two.process(), two.process()
    reader.read(1, b"page")
    two.old.kill()
    worker.invalidate(1)
    closed_at = CacheState.objects.get().closed_at
    another.invalidate(1)
    waits = []
    for _ in range(3):
        time.sleep(era.CLOSED_AT_LEAST_SECONDS / 2)
        reader.trust.refresh()  # asks Redis whether it is back
        for process in (worker, another):
            started = time.monotonic()
            process.invalidate(1)
            waits.append(time.monotonic() - started)
    assert CacheState.objects.get().closed_at == closed_at
    assert max(waits) < era.TRUST_SECONDS / 2


@pytest.mark.parametrize("closed_at", ["2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z"])
def test_the_clocks_of_hosts_do_not_matter(two: Two, closed_at: str) -> None:
    reader, worker = two.process(), two.process()
    reader.read(1, b"page")
    CacheState.objects.update(closed_at=closed_at)
    started = time.monotonic()
    worker.invalidate(1)
    assert time.monotonic() - started >= era.TRUST_SECONDS
    assert reader.read(1, b"page") == "bypass page"
    wait_until(lambda: reader.read(1, b"page") == "hit page", HEALED_WITHIN)


class Unreachable:
    """PostgreSQL, for one process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch, self._read_state = monkeypatch, era.read_state

    def __enter__(self) -> None:
        def gone() -> CacheState:
            raise OperationalError("gone")

        self._monkeypatch.setattr(era, "read_state", gone)

    def __exit__(self, *error: object) -> None:
        self._monkeypatch.setattr(era, "read_state", self._read_state)


def test_who_alone_cannot_read_postgresql_hears_of_a_closure_by_redis(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, worker = two.process(), two.process()
    reader.read(1, b"old")
    with Unreachable(monkeypatch):
        reader.trust.refresh()
        assert reader.read(1, b"") == "hit old"
    worker.pages.close()
    with Unreachable(monkeypatch):
        assert reader.read(1, b"new") == "bypass new"


def test_who_alone_cannot_read_postgresql_does_not_go_on_for_ever(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(era, "UNREADABLE_SECONDS", 0.5)
    reader = two.process()
    reader.read(1, b"old")
    with Unreachable(monkeypatch):
        reader.trust.refresh()
        assert reader.read(1, b"") == "hit old"
        time.sleep(0.6)
        reader.trust.refresh()
        assert reader.read(1, b"new") == "bypass new"
