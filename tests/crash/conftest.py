"""A small network on the real system, and the proof that nothing in it was lost or doubled."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
from pytest_django import Settings

from eventbus import kafka
from eventbus.models import ProcessedEvent
from feeds import imports, verification
from posts.models import Post
from tests.e2e.system import System, read_feed, running, settled, wait_until

AUTHORS, FOLLOWERS = 5, 10

# Users of one test each: a worker killed before its offset commit leaves events that the next test's workers get.
_users = itertools.count(1_000, 1_000)


@dataclass
class Network:
    """What clients did, as the answers they got say it; every follower follows every author."""

    system: System
    authors: list[int]
    followers: list[int]
    posts: dict[int, int] = field(default_factory=dict)  # author by post
    events: set[int] = field(default_factory=set)

    def post(self, count: int = 20) -> None:
        for number in range(count):
            author = self.authors[number % len(self.authors)]
            with self.system.client(author) as client:
                self.accept(client.post("/posts", json={"content": f"post {number} 世界"}), author)

    def accept(self, answer: httpx.Response, author: int) -> None:
        assert answer.status_code == 202, answer.text
        self.posts[int(answer.json()["id"])] = author
        self.events.add(int(answer.json()["event_id"]))

    def look(self) -> None:
        """Have every feed cached."""
        with self.system.client(1, scope="feeds:read") as client:
            for follower in self.followers:
                client.get(f"/feeds/{follower}").raise_for_status()

    def prove(self) -> None:
        """Nothing lost, nothing doubled, no stale page, every acceptance accounted for."""
        wait_until(lambda: settled(self.events))
        assert set(ProcessedEvent.objects.filter(event_id__in=self.events).values_list("event_id", flat=True)) == (
            self.events
        )
        assert set(Post.objects.filter(author_id__in=self.authors).values_list("id", flat=True)) == set(self.posts)
        expected = sorted(self.posts, reverse=True)
        with self.system.client(1, scope="feeds:read") as client:
            for follower in self.followers:
                wait_until(partial(shows, client, follower, expected))
                assert read_feed(client, follower, 7) == expected
        report = verification.verify()
        assert report.equal, report


def shows(client: httpx.Client, reader: int, expected: list[int]) -> bool:
    """Tell whether the reader's feed, its first page from the cache, is as expected."""
    return read_feed(client, reader, 20) == expected


@pytest.fixture
def system(transactional_db: None, tmp_path: Path, settings: Settings) -> Iterator[System]:
    if settings.KAFKA_SESSION_TIMEOUT_MS < 6_000:  # the embedded broker's; Apache Kafka would refuse less
        settings.KAFKA_SESSION_TIMEOUT_MS = 2_000
    kafka.create_topics()
    with running(tmp_path) as started:
        started.api()
        yield started


@pytest.fixture
def network(system: System) -> Network:
    """A network whose follows are in place and whose feeds are empty and cached."""
    first = next(_users)
    network = Network(
        system,
        authors=list(range(first, first + AUTHORS)),
        followers=list(range(first + AUTHORS, first + AUTHORS + FOLLOWERS)),
    )
    imports.import_follows((follower, author) for follower in network.followers for author in network.authors)
    network.look()
    return network
