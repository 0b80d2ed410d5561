"""Two cells with workers of their own on a real graph: each reader's feed, in their cell, is the join,
though workers are killed.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from eventbus import cells, kafka, producer
from eventbus.cells import Cell
from eventbus.ids import node_lease
from eventbus.models import ConsumerOffset, Erasure
from feeds import verification
from feeds.timeline import Reader
from posts.models import Post
from posts.pagination import START, Position
from tests.cells.maps import DATABASES, manage
from tests.crash.conftest import fresh_broker as fresh_broker
from tests.e2e import real_data
from tests.e2e.system import running, settled, wait_until
from tests.factories import (
    PostCreatedFactory,
    PostDeletedFactory,
    PostEditedFactory,
    UserBlockedFactory,
    UserErasedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnblockedFactory,
    UserUnfollowedFactory,
)

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True, databases=DATABASES)]

SEED, POSTS, READERS = 20_261, 900, 400


class History:
    """What was published, and what the feeds must be by it, in plain Python."""

    def __init__(self, follows: set[real_data.Pair]) -> None:
        self.follows = set(follows)
        self.mutes: set[real_data.Pair] = set()
        self.posts: dict[int, int] = {}  # author by post
        self.edited: set[int] = set()
        self.events: set[int] = set()

    def publish(self, facts: Iterable[Any]) -> None:
        events = [fact.to_event() for fact in facts]
        for start in range(0, len(events), 200):
            producer.publish_all(events[start : start + 200])
        self.events |= {event.event_id for event in events}

    def post(self, authors: Iterable[int]) -> None:
        posts = [
            PostCreatedFactory(
                event_id=node_lease.next_id(), post_id=node_lease.next_id(), author_id=author
            )
            for author in authors
        ]
        self.publish(posts)
        self.posts |= {post.post_id: post.author_id for post in posts}

    def feeds(self, readers: Iterable[int]) -> dict[int, list[int]]:
        authors_of: dict[int, set[int]] = defaultdict(set)
        for follower, followee in self.follows - self.mutes:
            authors_of[follower].add(followee)
        return {
            reader: sorted(
                (
                    post
                    for post, author in self.posts.items()
                    if author == reader or author in authors_of[reader]
                ),
                reverse=True,
            )
            for reader in readers
        }


def change_follows(history: History, chance: random.Random) -> None:
    authors = sorted(set(history.posts.values()))
    for follower in chance.sample(sorted({follower for follower, _ in history.follows}), 60):
        pair = follower, chance.choice(authors)
        if follower == pair[1]:
            continue
        factory = UserUnfollowedFactory if pair in history.follows else UserFollowedFactory
        history.publish([about(factory, follower_id=pair[0], followee_id=pair[1])])
        history.follows ^= {pair}


def mute_and_block(history: History, chance: random.Random) -> None:
    authors = set(history.posts.values())
    pairs = chance.sample(sorted(pair for pair in history.follows if pair[1] in authors), 60)
    for number, (follower, followee) in enumerate(pairs):
        if number % 3 == 0:
            history.publish([about(UserMutedFactory, user_id=follower, muted_id=followee)])
            history.mutes.add((follower, followee))
            continue
        block = {"blocker_id": followee, "blocked_id": follower}
        history.publish([about(UserBlockedFactory, **block)])
        if number % 3 == 1:
            history.publish([about(UserUnblockedFactory, **block)])
        history.follows -= {(follower, followee), (followee, follower)}


def edit_and_delete(history: History, chance: random.Random) -> None:
    chosen = chance.sample(sorted(history.posts), 60)
    for post_id in chosen[:30]:
        of = {"post_id": post_id, "author_id": history.posts[post_id]}
        history.edited.add(post_id)
        history.publish([about(PostEditedFactory, content=f"edited {post_id}", **of)])
    for post_id in chosen[30:]:
        author = history.posts.pop(post_id)
        history.publish([about(PostDeletedFactory, post_id=post_id, author_id=author)])


def erase(history: History, chance: random.Random) -> None:
    for user in chance.sample(sorted(set(history.posts.values())), 4):
        history.publish([about(UserErasedFactory, user_id=user)])
        history.posts = {post: by for post, by in history.posts.items() if by != user}
        history.follows = {pair for pair in history.follows if user not in pair}
        history.mutes = {pair for pair in history.mutes if user not in pair}
        history.post([user])


def about(factory: Any, **fields: Any) -> Any:
    return factory(event_id=node_lease.next_id(), **fields)


def whole_feed(reader: int) -> list[int]:
    posts: list[int] = []
    position = START
    while page := Reader(reader).read(position, 100):
        posts += [row.id for row in page]
        position = Position(page[-1].id - 1, newer=False)
    return posts


def all_have_processed(two_cells: list[Cell], history: History) -> bool:
    for cell in two_cells:
        with cells.on(cell):
            if not settled(history.events) or Erasure.objects.filter(finished_at=None).exists():
                return False
    return True


def test_each_feed_equals_the_join_in_its_cell_though_workers_are_killed(
    two_cells: list[Cell], the_map: str, tmp_path: Path
) -> None:
    kafka.create_topics()
    file, follows = real_data.follow_graph(tmp_path)
    chance = random.Random(SEED)
    assert manage("import_follows", str(file), FEED_CELLS=the_map).returncode == 0
    history = History(follows)
    authors = [author for author, _ in real_data.posts(POSTS, follows, SEED)]

    with running(tmp_path) as system:

        def worker(cell: str) -> Any:
            return system.command("run_fanout", "--cell", cell, FEED_CELLS=the_map)

        a, b = worker("a"), worker("b")
        history.post(authors[: POSTS // 2])
        b.kill()
        history.post(authors[POSTS // 2 :])
        change_follows(history, chance)
        b = worker("b")
        wait_until(lambda: all_have_processed(two_cells, history))
        mute_and_block(history, chance)
        wait_until(lambda: all_have_processed(two_cells, history))
        edit_and_delete(history, chance)
        a.kill()
        a = worker("a")
        wait_until(lambda: all_have_processed(two_cells, history))
        erase(history, chance)
        wait_until(lambda: all_have_processed(two_cells, history))
        assert [a.stop(), b.stop()] == [0, 0]

    readers = chance.sample(sorted({user for pair in history.follows for user in pair}), READERS)
    expected = history.feeds(readers)
    for cell in two_cells:
        with cells.on(cell):
            mine = [reader for reader in readers if cell.serves(reader)]
            assert len(mine) > READERS // 4
            assert {reader: whole_feed(reader) for reader in mine} == {
                reader: expected[reader] for reader in mine
            }
            assert verification.verify().equal
            moved = ConsumerOffset.objects.exclude(next_offset=0)
            assert set(moved.values_list("group", flat=True)) == {f"fanout.{cell.name}"}
            edited = Post.objects.filter(content__startswith="edited").values_list("id", flat=True)
            assert history.posts.keys() & edited == history.posts.keys() & history.edited
