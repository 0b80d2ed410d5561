"""Who follows whom, and who posts: an even network, and real ones where their files are at hand."""

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import database
from benchmarks.stand import ROOT
from eventbus import envelope, kafka
from eventbus.consume.lanes import Lanes
from eventbus.consume.leaving import Leaving
from eventbus.consume.processing import Processor
from eventbus.ids import idempotency
from eventbus.record import Delivery, Record
from eventbus.subscription import Handlers, Subscription
from feeds import imports
from feeds.read import here
from posts import services
from posts.csvfiles import open_csv

DATA = ROOT.parent / "shared" / "data"
GRAPH = "graph_github_musae.csv.gz"
TEXT = "A post of ordinary length, as people write them: has anyone been up to the old lighthouse this week?"
FIRST_READER = 1_001
Batches = Sequence[list[Record]]
TABLES = "posts, feeds, feed_entries, follows, processed_events"


@dataclass(frozen=True)
class Network:
    """Follows, and the authors of the posts to come, each as likely as it is listed."""

    name: str
    follows: list[tuple[int, int]]
    authors: list[int]


def even_network(followers: int, authors: int = 200, users: int = 10_000) -> Network:
    """Return a network in which every author has the same number of followers."""
    dice = random.Random(1)
    readers = range(FIRST_READER, FIRST_READER + users)
    follows = [
        (reader, author)
        for author in range(1, authors + 1)
        for reader in dice.sample(readers, followers)
    ]
    return Network(f"{followers:,} followers each", follows, list(range(1, authors + 1)))


def real_network() -> Network | None:
    """Return a real graph in which those with more followers post more often, or None without its
    file.
    """
    file = DATA / GRAPH
    if not file.exists():
        return None
    with open_csv(file) as lines:
        follows = list(imports.read_pairs(lines, mutual=True, id_offset=1))
    followers = Counter(followee for _follower, followee in follows)
    dice = random.Random(2)
    authors = dice.choices(list(followers), [count**0.5 for count in followers.values()], k=5_000)
    return Network("real graph (GitHub, 37,700 users)", follows, authors)


def load(network: Network) -> None:
    """Make `network` the only content of the database, with fresh statistics."""
    empty()
    imports.import_follows(network.follows)
    database.execute(f"VACUUM ANALYZE {TABLES}")


def empty() -> None:
    """Leave nothing in the database, and no cached page."""
    database.execute(f"TRUNCATE {TABLES}")
    here.pages.close()


def records(authors: Iterable[int]) -> list[Record]:
    """Return a new `post.created` record of each author, as the worker gets it from Kafka."""
    return [_record(author, offset) for offset, author in enumerate(authors)]


def _record(author: int, offset: int) -> Record:
    event = services.new_post(author_id=author, content=TEXT, ids=idempotency.fresh()).to_event()
    key, value = envelope.encode_key(event.key), envelope.encode(event)
    return Record(kafka.FEED_EVENTS, 0, offset, key, value, (), 0)


class _Free:
    """A turn that nothing interrupts, on records that nobody takes away. No event here may fail."""

    def stopping(self) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def still_ours(self, _record: Record) -> bool:
        return True

    def bury(self, record: Record, error: BaseException, _delivery: Delivery | None) -> None:
        raise RuntimeError(f"no event here may fail: {record.value!r}") from error

    write = bury


def process(subscription: Subscription, batches: Batches) -> float:
    """Process the batches as `run_fanout` does, from bytes to invalidated pages; return the
    seconds.
    """
    free = _Free()
    lanes = Lanes(subscription.lanes, Processor(subscription.handlers), free, Leaving())
    started = time.perf_counter()
    for batch in batches:
        lanes.process(batch, free)
    return time.perf_counter() - started


def process_in_one_lane(handlers: Handlers[Any], batches: Batches) -> float:
    """Process the batches in this very thread; return the seconds."""
    processor = Processor(handlers)
    started = time.perf_counter()
    for batch in batches:
        processor.process(batch, _Free())
    return time.perf_counter() - started
