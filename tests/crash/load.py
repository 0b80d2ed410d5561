"""Clients at work: they write and read through whatever happens, and know what they were
promised.
"""

import random
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any
from uuid import uuid4

import httpx

from feedsite.authentication import issue_token
from tests.crash.network import Network
from tests.e2e.system import PATIENCE

CLIENTS = 4
PAUSE_SECONDS = 0.03
# A client goes on trying for as long as an outage, and the recovery from it, may take.
TRY_SECONDS = 2 * PATIENCE
TRY_PAUSE_SECONDS = 0.1


class Load:
    """Writes and reads from several clients, from `with` to its end.

    Each write is repeated under one `Idempotency-Key` until it is accepted. So when the load has
    ended, the writes begun are the writes accepted, and each must have its effect once, however
    often it was sent.
    """

    def __init__(self, network: Network, seed: int = 1) -> None:
        self.network = network
        self.writes: list[str] = []  # a key each
        self.posts = 0
        self.answers: Counter[str] = Counter()  # by status, or by the error that came instead
        self._seed = seed
        self._stopping = threading.Event()
        self._given_up = False
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients: list[Future[None]] = []

    def __enter__(self) -> "Load":
        self._clients = [self._pool.submit(self._work, number) for number in range(CLIENTS)]
        return self

    def __exit__(
        self, failed: type[BaseException] | None, _error: object, _traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._given_up = failed is not None
        self._pool.shutdown()
        if failed is None:
            for client in self._clients:
                client.result()
            assert len(self.writes) == len(self.network.events), "Some writes were not accepted."

    @property
    def refused(self) -> int:
        """How often a request got no answer, or another than it asked for."""
        return self.answers.total() - self.answers["200"] - self.answers["202"]

    def _work(self, number: int) -> None:
        # A user's writes go through one client, so the order of the answers is the order of the
        # facts.
        chance = random.Random(f"{self._seed} {number}")
        authors = self.network.authors[number::CLIENTS]
        followers = self.network.followers[number::CLIENTS]
        with httpx.Client(base_url=self.network.system.url, timeout=PATIENCE) as client:
            while not self._stopping.is_set():
                (act,) = chance.choices(
                    [self._post, self._delete, self._read, self._turn, self._mute],
                    [14, 1, 4, 1, 1],
                )
                act(client, chance, authors if act in (self._post, self._delete) else followers)
                time.sleep(PAUSE_SECONDS)

    def _post(self, client: httpx.Client, chance: random.Random, authors: list[int]) -> None:
        author = chance.choice(authors)
        answer = self._write(
            client, "POST", "/posts", author, json={"content": f"post {len(self.writes)} 世界"}
        )
        self.network.posts[int(answer["id"])] = author
        self.posts += 1

    def _delete(self, client: httpx.Client, chance: random.Random, authors: list[int]) -> None:
        posts = [post for post, author in self.network.posts.copy().items() if author in authors]
        if posts:
            post = chance.choice(posts)
            self._write(client, "DELETE", f"/posts/{post}", self.network.posts[post])
            del self.network.posts[post]

    def _turn(self, client: httpx.Client, chance: random.Random, followers: list[int]) -> None:
        """Unfollow someone who is followed, or follow again."""
        pair = chance.choice(followers), chance.choice(self.network.authors)
        follower, author = pair
        if pair in self.network.follows:
            self._write(client, "DELETE", f"/follows/{author}", follower)
            self.network.follows.discard(pair)
        else:
            self._write(client, "PUT", f"/follows/{author}", follower)
            self.network.follows.add(pair)

    def _mute(self, client: httpx.Client, chance: random.Random, followers: list[int]) -> None:
        """Mute an author, or lift that."""
        pair = chance.choice(followers), chance.choice(self.network.authors)
        follower, author = pair
        if pair in self.network.mutes:
            self._write(client, "DELETE", f"/mutes/{author}", follower)
            self.network.mutes.discard(pair)
        else:
            self._write(client, "PUT", f"/mutes/{author}", follower)
            self.network.mutes.add(pair)

    def _read(self, client: httpx.Client, chance: random.Random, followers: list[int]) -> None:
        reader = chance.choice(followers)
        answer = self._request(client, "GET", f"/feeds/{reader}", reader)
        if answer is not None and answer.status_code == 200:
            posts = [int(post["id"]) for post in answer.json()["results"]]
            assert posts == sorted(set(posts), reverse=True), f"a page out of order: {posts}"

    def _write(
        self, client: httpx.Client, method: str, url: str, user: int, **options: Any
    ) -> dict[str, str]:
        """Return the answer that accepts the write."""
        key = str(uuid4())
        self.writes.append(key)
        deadline = time.monotonic() + TRY_SECONDS
        while True:
            answer = self._request(client, method, url, user, {"Idempotency-Key": key}, **options)
            if answer is not None and answer.status_code == 202:
                fields: dict[str, str] = answer.json()
                self.network.events.add(int(fields["event_id"]))
                return fields
            in_time = time.monotonic() < deadline and not self._given_up
            assert in_time, f"{method} {url} was not accepted: {answer and answer.text}"
            time.sleep(TRY_PAUSE_SECONDS)

    def _request(
        self,
        client: httpx.Client,
        method: str,
        url: str,
        user: int,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response | None:
        """Return the answer, None where the connection broke: an outage may show as these or as a
        503, nothing else.
        """
        token = {"Authorization": f"Bearer {issue_token(user, '', 3_600)}"}
        try:
            answer = client.request(method, url, headers=token | (headers or {}), **options)
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        # A post that is still on its way cannot be deleted yet.
        expected = {200, 202, 503} | ({404} if method == "DELETE" else set())
        assert answer.status_code in expected, f"{method} {url}: {answer.status_code} {answer.text}"
        return answer
