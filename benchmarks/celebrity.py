"""A celebrity posts: what it costs, who sees it, and whether the posts of others wait for it.

Real processes.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import database, reading, tables, visible, workload
from benchmarks.stand import Stand
from benchmarks.tables import progress
from benchmarks.visible import Author, Follower, Probe
from feeds import imports

CELEBRITY = 900_000
FOLLOWERS = 1_000_000
FIRST_FOLLOWER = 10_000_001
PAIRS = 12  # of others: an author and a reader each, spread over the partitions
PAUSE_SECONDS = 0.2  # between two posts of the celebrity
WHILE_MEASURED = 3600.0

_FOLLOW = "INSERT INTO follows (follower_id, followee_id, event_id) SELECT n, %s, 1 FROM generate_series(%s, %s) AS n"
_FEEDS = "INSERT INTO feeds (user_id) SELECT n FROM generate_series(%s, %s) AS n"
_CELEBRITY = "INSERT INTO feeds (user_id, follower_count, pulled_since) VALUES (%s, %s, 'epoch')"
_MOST_FOLLOWED = (
    "SELECT user_id FROM feeds WHERE follower_count < %s ORDER BY follower_count DESC LIMIT 1"
)


def run(stand: Stand, quick: bool) -> None:
    """Measure the others while nobody else posts, while the celebrity does, and while the most
    followed user does.
    """
    posts, followers = (100, 100) if quick else (500, 1_000)
    _load()
    most_followed = database.value(_MOST_FOLLOWED, [FOLLOWERS])
    count = database.value("SELECT follower_count FROM feeds WHERE user_id = %s", [most_followed])
    rows = []
    with stand.api() as port:
        with stand.worker("run_fanout"):
            others = Others(port)
            others.measure(2 * PAIRS)
            rows.append(["nobody else", *others.figures(posts), "", ""])
            rows.append(
                _beside(f"{FOLLOWERS:,} followers, pulled", others, Author(port, CELEBRITY), posts)
            )
            rows.append(
                _beside(f"{count:,} followers, pushed", others, Author(port, most_followed), posts)
            )
            seen = _next_reads(port, followers)
        if not quick:
            with stand.worker("run_fanout", FEED_STRATEGY="push"):
                others.measure(PAIRS)
                name = f"{FOLLOWERS:,} followers, pushed, one post"
                rows.append(
                    _beside(name, others, Author(port, CELEBRITY), PAIRS, pause=WHILE_MEASURED)
                )
    head = [
        "beside posts to",
        "posts of others",
        "p50 ms",
        "p99 ms",
        "max ms",
        "posts",
        "feed rows a post",
    ]
    tables.table("Celebrity: from 202 to visible for posts of others, one worker", head, rows)
    tables.note(
        f"{seen} of {followers} random followers, their page cached before, saw the next post when they next read."
    )


def _load() -> None:
    progress(f"celebrity: loading {FOLLOWERS:,} followers")
    network = workload.real_network() or workload.even_network(followers=5_000, authors=2)
    network.follows.extend((_reader(n), _author(n)) for n in range(PAIRS))
    workload.empty()
    imports.import_follows(network.follows)
    ends = [FIRST_FOLLOWER, FIRST_FOLLOWER + FOLLOWERS - 1]
    database.execute(_FOLLOW, [CELEBRITY, *ends])
    database.execute(_FEEDS, ends)
    database.execute(_CELEBRITY, [CELEBRITY, FOLLOWERS])
    database.execute("VACUUM ANALYZE follows, feeds")
    database.checkpoint()


def _author(number: int) -> int:
    return CELEBRITY + 100 + number


def _reader(number: int) -> int:
    return CELEBRITY + 200 + number


class Others:
    """Pairs of an author and a follower who waits for the post, one pair after the other."""

    def __init__(self, port: int) -> None:
        self._probes = [Probe(port, _author(n), _reader(n)) for n in range(PAIRS)]

    def measure(self, posts: int) -> list[float]:
        """Return the seconds to visible of `posts` posts."""
        return [self._probes[n % PAIRS].measure(1)[0] for n in range(posts)]

    def figures(self, posts: int) -> list[tables.Cell]:
        progress(f"celebrity: {posts} posts of others")
        return visible.figures(self.measure(posts))


def _beside(
    name: str, others: Others, author: Author, posts: int, pause: float = PAUSE_SECONDS
) -> list[tables.Cell]:
    with _posting(author, pause) as published:
        figures = others.figures(posts)
    rows = database.value("SELECT count(*) FROM feed_entries WHERE post_id = ANY(%s)", [published])
    return [name, *figures, str(len(published)), f"{rows / len(published):,.0f}"]


@contextmanager
def _posting(author: Author, pause: float) -> Iterator[list[int]]:
    """Let the author post again and again; yield the list that their post ids go into."""
    stop, published = threading.Event(), [author.post()]

    def post() -> None:
        while not stop.wait(pause):
            published.append(author.post())

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield published
    finally:
        stop.set()
        thread.join()


def _next_reads(port: int, count: int) -> int:
    """Return how many of `count` random followers see the celebrity's post on their next read, once
    one has.
    """
    client, celebrity = reading.Client(port), Author(port, CELEBRITY)
    first, *users = random.Random(4).sample(
        range(FIRST_FOLLOWER, FIRST_FOLLOWER + FOLLOWERS), count + 1
    )
    for user in users:
        client.get(user)
    post_id = celebrity.post()
    Follower(port, first).wait_for(post_id)
    return sum(
        str(post_id) in {post["id"] for post in client.get(user)["results"]} for user in users
    )
