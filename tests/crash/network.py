"""A small network on the real system: what its clients did, and the proof that nothing of it was
lost or doubled.
"""

from dataclasses import dataclass, field

import httpx

from eventbus import cells
from eventbus.models import DeadLetter, ProcessedEvent
from feeds import imports, verification
from posts.models import Post
from tests.e2e.system import PATIENCE, System, read_feed, settled, wait_until

AUTHORS, FOLLOWERS = 5, 10


@dataclass(frozen=True, slots=True)
class Differences:
    """What is wrong, by three independent counts: the acceptances, a join in plain Python, and
    `verify_feeds`.
    """

    lost: int
    doubled: int


@dataclass
class Network:
    """What clients did, as the answers they got say it; at first every follower follows every
    author.
    """

    system: System
    authors: list[int]
    followers: list[int]
    follows: set[tuple[int, int]] = field(default_factory=set)  # follower, followee
    mutes: set[tuple[int, int]] = field(default_factory=set)  # who mutes, who is muted
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

    def erase(self, author: int) -> int:
        """Erase an author: all they have posted so far is gone. Return the event's id."""
        with self.system.client(author) as client:
            answer = client.delete(f"/users/{author}")
        assert answer.status_code == 202, answer.text
        self.posts = {post: by for post, by in self.posts.items() if by != author}
        self.follows = {pair for pair in self.follows if author not in pair}
        self.mutes = {pair for pair in self.mutes if author not in pair}
        self.events.add(int(answer.json()["event_id"]))
        return int(answer.json()["event_id"])

    def look(self) -> None:
        """Have every feed cached."""
        with self.system.client(1, scope="feeds:read") as client:
            for follower in self.followers:
                client.get(f"/feeds/{follower}").raise_for_status()

    def feed(self, follower: int) -> list[int]:
        """Return what the follower's feed must be: a join of the answers, in plain Python."""
        in_feed = self.follows - self.mutes
        authors = {followee for reader, followee in in_feed if reader == follower}
        return sorted(
            (post for post, author in self.posts.items() if author in authors), reverse=True
        )

    def prove(self, seconds: float = PATIENCE) -> None:
        """Nothing lost, nothing doubled, no stale page, every acceptance accounted for within
        `seconds`.
        """
        wait_until(lambda: settled(self.events), seconds)
        dead = DeadLetter.objects.filter(event_id__in=self.events).unresolved()
        assert not dead, [(letter.event_id, letter.state, str(letter.group)) for letter in dead]
        assert ProcessedEvent.objects.filter(event_id__in=self.events).count() == len(self.events)
        written = Post.objects.filter(author_id__in=self.authors, deleted_event_id=None)
        assert set(written.values_list("id", flat=True)) == set(self.posts)
        # A page may be stale for the moment between a commit and its invalidation, not longer.
        wait_until(lambda: self.differences() == Differences(0, 0))
        report = verification.verify()
        assert report.equal, report

    def differences(self) -> Differences:
        """Count what is missing and what is there too often, in what the API shows and in what is
        stored.
        """
        lost, doubled = 0, 0
        for cell in cells.every().values():
            with cells.on(cell):
                processed = ProcessedEvent.objects.filter(event_id__in=self.events).count()
                report = verification.verify()
            lost += len(self.events) - processed + report.missing
            doubled += report.extra + report.duplicate
        with self.system.client(1, scope="feeds:read") as client:
            for follower in self.followers:
                shown, expected = read_feed(client, follower, 20), set(self.feed(follower))
                lost += len(expected - set(shown))
                doubled += len(shown) - len(expected & set(shown))
        return Differences(lost, doubled)


def settled_everywhere(event_ids: set[int]) -> bool:
    """Tell whether every event is processed, or a dead letter, in each cell."""
    for cell in cells.every().values():
        with cells.on(cell):
            if not settled(event_ids):
                return False
    return True


def build(system: System, first_user: int) -> Network:
    """Return a network whose follows are in place and whose feeds are empty and cached."""
    network = Network(
        system,
        authors=list(range(first_user, first_user + AUTHORS)),
        followers=list(range(first_user + AUTHORS, first_user + AUTHORS + FOLLOWERS)),
    )
    network.follows = {
        (follower, author) for follower in network.followers for author in network.authors
    }
    for cell in cells.every().values():
        with cells.on(cell):
            imports.import_follows(network.follows)
    network.look()
    return network
