"""From a post's 202 to its appearance in a follower's feed, seen by polling over HTTP."""

import json
import time
from subprocess import Popen

from benchmarks import http_load, reading, requests, tables, workload
from benchmarks.load import Plan
from benchmarks.stand import Stand
from feedsite.authentication import issue_token

PAUSE_SECONDS = 0.02
POLL_SECONDS = 0.001
PATIENCE_SECONDS = 120.0
LOAD_RATE = 500.0
LOAD_FOLLOWERS = 20
SETTLE_SECONDS = 2.0

AUTHOR, READER = 900_001, 900_002


def run(stand: Stand, quick: bool) -> None:
    """Measure on an idle system, then under a steady load of posts by others."""
    posts = 50 if quick else 200
    network = workload.even_network(followers=LOAD_FOLLOWERS)
    network.follows.append((READER, AUTHOR))
    workload.load(network)
    rows: list[list[tables.Cell]] = []
    with stand.api() as port, stand.worker("run_fanout"):
        tables.progress("time to visible, idle")
        probe = Probe(port)
        probe.measure(5)
        rows.append(["idle", *figures(probe.measure(posts)), ""])
        tables.progress(f"time to visible, with {LOAD_RATE:.0f} posts/s beside")
        seconds = SETTLE_SECONDS + posts * (PAUSE_SECONDS + 0.1)
        plan = Plan(
            port, requests.posts(network.authors), connections=32, seconds=seconds, rate=LOAD_RATE
        )
        with http_load.start(plan) as load:
            time.sleep(SETTLE_SECONDS)
            times = probe.measure(posts, alongside=load)
            beside = http_load.result(load)
        name = f"beside {beside.rate:.0f} posts/s to {LOAD_FOLLOWERS} followers each"
        rows.append([name, *figures(times), str(beside.errors)])
    head = ["system", "posts", "p50 ms", "p99 ms", "max ms", "errors of the load"]
    tables.table("From 202 to visible in a follower's feed", head, rows)


class Author:
    """Someone who posts, on a connection of their own."""

    def __init__(self, port: int, user: int) -> None:
        self._connection = reading.Connection(port)
        self._headers = {
            "Authorization": f"Bearer {issue_token(user, '', 3600)}",
            "Content-Type": "application/json",
        }

    def post(self) -> int:
        """Return the id of a new post, once it is accepted."""
        text = json.dumps({"content": workload.TEXT})
        status, body = self._connection.request("POST", "/posts", self._headers, text)
        if status != 202:
            raise RuntimeError(f"not accepted: {body!r}")
        return int(json.loads(body)["id"])


class Follower:
    """Someone who polls the first page of their feed."""

    def __init__(self, port: int, user: int) -> None:
        self._client, self._user = reading.Client(port), user

    def wait_for(self, post_id: int) -> None:
        """Return when the post is in the feed."""
        deadline = time.perf_counter() + PATIENCE_SECONDS
        while str(post_id) not in {post["id"] for post in self._client.get(self._user)["results"]}:
            if time.perf_counter() > deadline:
                raise RuntimeError("a post did not get visible")
            time.sleep(POLL_SECONDS)


class Probe:
    """An author who posts and a follower who polls, one connection each."""

    def __init__(self, port: int, author: int = AUTHOR, reader: int = READER) -> None:
        self._author, self._follower = Author(port, author), Follower(port, reader)

    def measure(self, posts: int, alongside: "Popen[str] | None" = None) -> list[float]:
        """Return the seconds of up to `posts` posts, as long as the process `alongside` lives."""
        times: list[float] = []
        while len(times) < posts and (alongside is None or alongside.poll() is None):
            times.append(self._time_to_visible())
            time.sleep(PAUSE_SECONDS)
        return times

    def _time_to_visible(self) -> float:
        post_id = self._author.post()
        accepted = time.perf_counter()
        self._follower.wait_for(post_id)
        return time.perf_counter() - accepted


def figures(times: list[float]) -> list[tables.Cell]:
    """Return the number of posts, and the median, 99th percentile and maximum in milliseconds."""
    milliseconds = [seconds * 1000 for seconds in times]
    return [
        str(len(times)),
        *(tables.percentile(milliseconds, percent) for percent in (50, 99, 100)),
    ]
