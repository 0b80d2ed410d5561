"""What goes on while readers are moved: posts, changes of all kinds, and readers who read."""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from django.db import connections

from eventbus import cells
from feeds.timeline import Reader
from posts.pagination import START
from tests.cells.test_processes import History, about
from tests.factories import (
    PostDeletedFactory,
    PostEditedFactory,
    UserErasedFactory,
    UserFollowedFactory,
    UserMutedFactory,
    UserUnfollowedFactory,
)

PAUSE, READ_PAUSE = 0.1, 0.02  # seconds


class Load:
    """Has things published, and reads as the API does: in the cell that the map names now.

    What takes posts out of feeds is noted before it is published, so that a reader who no longer has
    a post is wronged if it is to be there by what is noted.
    """

    def __init__(self, history: History, users: Sequence[int], databases: Sequence[str]) -> None:
        self.history = history
        self.users = users
        self.is_flipping = False
        self.older: list[tuple[int, int]] = []  # readers, and what they had seen before
        self.pages = self.rounds = 0
        self._databases = databases
        self._newest: dict[int, int] = {}  # that a reader has seen before the flip
        self._chance = random.Random(18)
        self._recent: deque[int] = deque(maxlen=500)
        self._over = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        with ThreadPoolExecutor(2) as threads:
            going = [threads.submit(self._publish), threads.submit(self._read)]
            try:
                yield
            finally:
                self._over.set()
            for thread in going:
                thread.result()

    def _publish(self) -> None:
        changes: list[Callable[[], None]] = [
            self._follow, self._unfollow, self._follow, self._edit, self._mute, self._delete
        ]  # fmt: skip
        while not self._over.wait(PAUSE):
            before = set(self.history.posts)
            self.history.post(self._chance.choices(self.users, k=5))
            self._recent.extend(self.history.posts.keys() - before)
            changes[self.rounds % len(changes)]()
            if self.rounds % 50 == 15:
                self._erase()
            self.rounds += 1

    def _follow(self) -> None:
        follower, followee = self._chance.sample(self.users, 2)
        self.history.publish(
            [about(UserFollowedFactory, follower_id=follower, followee_id=followee)]
        )
        self.history.follows.add((follower, followee))

    def _unfollow(self) -> None:
        follower, followee = pair = self._chance.choice(sorted(self.history.follows))
        self.history.follows.remove(pair)
        self.history.publish(
            [about(UserUnfollowedFactory, follower_id=follower, followee_id=followee)]
        )

    def _mute(self) -> None:
        reader, muted = pair = self._chance.choice(sorted(self.history.follows))
        self.history.mutes.add(pair)
        self.history.publish([about(UserMutedFactory, user_id=reader, muted_id=muted)])

    def _edit(self) -> None:
        if post := self._some_post():
            author = self.history.posts[post]
            self.history.publish([about(PostEditedFactory, post_id=post, author_id=author)])

    def _delete(self) -> None:
        if post := self._some_post():
            author = self.history.posts.pop(post)
            self.history.publish([about(PostDeletedFactory, post_id=post, author_id=author)])

    def _erase(self) -> None:
        gone, history = self._chance.choice(self.users), self.history
        history.posts = {post: author for post, author in history.posts.items() if author != gone}
        history.follows = {pair for pair in history.follows if gone not in pair}
        history.mutes = {pair for pair in history.mutes if gone not in pair}
        history.publish([about(UserErasedFactory, user_id=gone)])

    def _some_post(self) -> int:
        living = [post for post in self._recent if post in self.history.posts]
        return self._chance.choice(living) if living else 0

    def _read(self) -> None:
        chance = random.Random(81)
        while not self._over.wait(READ_PAUSE):
            cells.refresh()
            reader = chance.choice(self.users)
            was_flipping = self.is_flipping
            with cells.on(cells.of(reader)):
                page = Reader(reader).read(START, 10)
            self.pages += 1
            newest = page[0].id if page else 0
            seen = self._newest.get(reader, 0)
            if newest < seen and self._is_to_be_there(seen, reader):
                self.older.append((reader, seen))
            # What is seen first while readers are moved may be seen a moment later where they go.
            if not was_flipping and not self.is_flipping:
                self._newest[reader] = max(newest, seen)
        for alias in self._databases:
            connections[alias].close()

    def _is_to_be_there(self, post: int, reader: int) -> bool:
        author = self.history.posts.get(post, 0)
        pair = reader, author
        is_shown = pair in self.history.follows and pair not in self.history.mutes
        return bool(author) and (author == reader or is_shown)
