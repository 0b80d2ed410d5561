"""What clients, and faults, send through a system: each kind counted, to compare with the
metrics.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from django.db import connection

from eventbus import kafka, producer
from eventbus.models import DeadLetter
from posts.events import PostCreated
from tests.e2e.system import System, settled, wait_until

AUTHORS = range(1, 5)
READERS = range(11, 17)
CURSED = "cursed"


@dataclass
class Traffic:
    """Everything that was sent so far."""

    system: System
    published: Counter[str] = field(default_factory=Counter)  # by event type
    reads: Counter[str] = field(default_factory=Counter)  # by X-Cache
    event_ids: set[int] = field(default_factory=set)
    poison: int = 0
    cursed: int = 0
    repeated: int = 0
    _posts: list[dict[str, str]] = field(default_factory=list)

    def follow(self) -> None:
        """Have every reader follow every author."""
        for reader in READERS:
            with self.system.client(reader) as client:
                for author in AUTHORS:
                    answer = client.put(f"/follows/{author}").raise_for_status()
                    self._accepted("user.followed", answer.json())

    def post(self, count: int, content: str = "a post") -> None:
        """Publish posts, each by a connection of its own: so every API process gets some."""
        for number in range(count):
            with self.system.client(AUTHORS[number % len(AUTHORS)]) as client:
                answer = client.post("/posts", json={"content": content}).raise_for_status().json()
            self._posts.append(answer)
            self._accepted("post.created", answer)

    def read(self) -> None:
        """Read every reader's first page twice, and another page."""
        for reader in READERS:
            with self.system.client(reader) as client:
                for page in ("", "", "?limit=5"):
                    self.reads[
                        client.get(f"/feeds/{reader}{page}").raise_for_status().headers["X-Cache"]
                    ] += 1

    def send_poison(self, count: int) -> None:
        """Put bytes that are no event into the topic."""
        for _ in range(count):
            producer.publish_record(kafka.FEED_EVENTS, b"1", b"not an event")
        self.poison += count

    def send_cursed(self, count: int) -> None:
        """Publish posts at which the database breaks in a way nobody foresaw; see `curse`."""
        self.post(count, CURSED)
        self.cursed += count

    def repeat(self, count: int) -> None:
        """Publish posts again that are processed already."""
        for answer in self._posts[:count]:
            fact = PostCreated(
                event_id=int(answer["event_id"]),
                post_id=int(answer["id"]),
                author_id=int(answer["author_id"]),
                content=answer["content"],
                created_at=datetime.fromisoformat(answer["created_at"]),
            )
            producer.publish(fact.to_event())
        self.repeated += count

    def settle(self) -> None:
        """Wait until everything sent is processed, or stored as a dead letter."""
        wait_until(lambda: settled(self.event_ids), 60)
        wait_until(lambda: DeadLetter.objects.count() == self.poison + self.cursed)

    def _accepted(self, event_type: str, answer: dict[str, str]) -> None:
        self.published[event_type] += 1
        self.event_ids.add(int(answer["event_id"]))


@contextmanager
def curse() -> Iterator[None]:
    """Make the database refuse posts whose content is `CURSED`, with an error that no policy
    knows.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'cursed'; END $$;
            CREATE TRIGGER curse BEFORE INSERT ON posts
            FOR EACH ROW WHEN (NEW.content = '{CURSED}') EXECUTE FUNCTION curse()
            """
        )
        try:
            yield
        finally:
            cursor.execute("DROP TRIGGER curse ON posts; DROP FUNCTION curse()")
