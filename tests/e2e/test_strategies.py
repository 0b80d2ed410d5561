"""The strategy is switched while posts come in, on a graph with one account that a quarter of all
follow.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection

from eventbus import kafka
from eventbus.models import ProcessedEvent
from posts.models import Fanout, Post
from tests.e2e.system import System, read_feed, running, settled, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

SEED = 20_262
USERS = range(1, 201)
STAR = 1
STAR_POSTS, POSTS_A_PHASE = 6, 60
STRATEGIES = ("push", "hybrid", "pull")
PUSH_MAX_FOLLOWERS = "30"

# What each feed is by definition, from the pairs and posts that this test kept, not from any table
# of feeds.
INDEPENDENT_JOIN = """
SELECT reader, coalesce(array_agg(post ORDER BY post DESC) FILTER (WHERE post IS NOT NULL), '{}')
FROM unnest(%(users)s::bigint[]) AS reader
LEFT JOIN (
    SELECT DISTINCT follower AS who, post
    FROM (
        SELECT * FROM unnest(%(followers)s::bigint[], %(followees)s::bigint[]) AS pair (follower, followee)
        UNION SELECT one, one FROM unnest(%(users)s::bigint[]) AS one
    ) AS pairs
    JOIN unnest(%(posts)s::bigint[], %(authors)s::bigint[]) AS written (post, author) ON author = followee
) AS feeds ON who = reader
GROUP BY reader
"""


def generated_graph(chance: random.Random) -> set[tuple[int, int]]:
    """Return (follower, followee): a quarter of all follow the star, everybody follows a few
    others.
    """
    fans = chance.sample([user for user in USERS if user != STAR], len(USERS) // 4)
    pairs = {(fan, STAR) for fan in fans}
    for follower in USERS:
        pairs |= {
            (follower, followee) for followee in chance.sample(USERS, 8) if followee != follower
        }
    return pairs


class Traffic:
    """Posts and deletes through the API, and remembers what was accepted."""

    def __init__(self, system: System, chance: random.Random) -> None:
        self.system, self.chance = system, chance
        self.posts: dict[int, int] = {}  # author by post
        self.events: set[int] = set()

    def post(self) -> None:
        """Have many post, the star above all."""
        authors = [STAR] * STAR_POSTS + self.chance.choices(USERS, k=POSTS_A_PHASE)
        self.chance.shuffle(authors)
        with ThreadPoolExecutor(4) as pool:
            for author, answer in zip(authors, pool.map(self._post, authors), strict=True):
                self.posts[int(answer["id"])] = author
                self.events.add(int(answer["event_id"]))

    def delete(self, count: int) -> None:
        """Have the star delete one of its posts, and others some of theirs."""
        mine = [post for post, author in self.posts.items() if author == STAR]
        for post in {self.chance.choice(mine), *self.chance.sample(sorted(self.posts), count)}:
            with self.system.client(self.posts.pop(post)) as client:
                self.events.add(
                    int(client.delete(f"/posts/{post}").raise_for_status().json()["event_id"])
                )

    def change_follows(self, pairs: set[tuple[int, int]], count: int) -> None:
        """Have some leave the star, and others come to it."""
        fans = {follower for follower, followee in pairs if followee == STAR}
        strangers = set(USERS) - fans - {STAR}
        for user in [
            *self.chance.sample(sorted(fans), count),
            *self.chance.sample(sorted(strangers), count),
        ]:
            with self.system.client(user) as client:
                answer = (
                    client.delete(f"/follows/{STAR}")
                    if user in fans
                    else client.put(f"/follows/{STAR}")
                )
            self.events.add(int(answer.raise_for_status().json()["event_id"]))
            pairs ^= {(user, STAR)}

    def is_half_done(self) -> bool:
        """Tell whether the worker is amid its work."""
        return (
            ProcessedEvent.objects.filter(event_id__in=self.events).count() > len(self.events) / 2
        )

    def wait(self) -> None:
        wait_until(lambda: settled(self.events))

    def _post(self, author: int) -> dict[str, str]:
        with self.system.client(author) as client:
            answer: dict[str, str] = (
                client.post("/posts", json={"content": f"by {author} 世界"})
                .raise_for_status()
                .json()
            )
        return answer


def expected_feeds(pairs: set[tuple[int, int]], posts: dict[int, int]) -> dict[int, list[int]]:
    values = {
        "users": list(USERS),
        "followers": [follower for follower, _ in pairs],
        "followees": [followee for _, followee in pairs],
        "posts": list(posts),
        "authors": list(posts.values()),
    }
    with connection.cursor() as cursor:
        cursor.execute(INDEPENDENT_JOIN, values)
        return dict(cursor.fetchall())


def test_feeds_stay_right_while_workers_are_restarted_under_another_strategy(
    tmp_path: Path,
) -> None:
    kafka.create_topics()
    chance = random.Random(SEED)
    pairs = generated_graph(chance)
    file = tmp_path / "graph.csv"
    file.write_text(
        "follower,followee\n"
        + "".join(f"{follower},{followee}\n" for follower, followee in sorted(pairs))
    )
    call_command("import_follows", str(file))
    with running(tmp_path) as system:
        system.api()
        traffic = Traffic(system, chance)
        for strategy in STRATEGIES:
            worker = system.worker(
                FEED_STRATEGY=strategy, FEED_PUSH_MAX_FOLLOWERS=PUSH_MAX_FOLLOWERS
            )
            traffic.post()
            traffic.change_follows(pairs, 3)
            wait_until(traffic.is_half_done)
            if strategy != STRATEGIES[-1]:
                assert worker.stop() == 0  # and the next one goes on under another strategy
        traffic.wait()
        traffic.delete(20)
        traffic.wait()

        kinds = Post.objects.alive().values_list("author_id", "fanout")
        assert {(STAR, Fanout.PUSH), (STAR, Fanout.PULL)} <= set(kinds)
        expected = expected_feeds(pairs, traffic.posts)
        with system.client(1, scope="feeds:read") as client:
            for user in USERS:
                assert read_feed(client, user, limit=50) == expected[user], user
        call_command("verify_feeds")
        assert worker.stop() == 0
