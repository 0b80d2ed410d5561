"""A load that one can see: posts and reads of the sample's users against a running demo."""

import random
import threading
import time
from collections.abc import Callable

from feedsite.demo import sample
from feedsite.demo.client import Client

THREADS = 8
READS_A_POST = 4


class Load:
    """Clients that post at a steady rate together, and read feeds in between."""

    def __init__(self, port: int, posts_a_second: float, seconds: float) -> None:
        self.accepted = 0
        self.read = 0
        self._port = port
        self._pause = THREADS / posts_a_second
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._failures: list[Exception] = []

    def run(self, progress: Callable[[int], object]) -> None:
        """Return at the end of the time; `progress` hears of each post. Raises `CommandError` of a
        client.
        """
        threads = [
            threading.Thread(target=self._client, args=[number, progress])
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _client(self, number: int, progress: Callable[[int], object]) -> None:
        dice = random.Random()  # noqa: S311 - whoever it is
        client = Client(self._port, time.sleep)
        drafts = sample.posts()
        due = time.monotonic() + self._pause * number / THREADS
        try:
            while (now := time.monotonic()) < self._end and not self._failures:
                time.sleep(max(0.0, min(due, self._end) - now))
                author, content = dice.choice(drafts)
                client.post(
                    author, "/posts", {"content": content}, f"load-{dice.getrandbits(96):x}"
                )
                for _ in range(READS_A_POST):
                    reader = dice.choice(sample.USERS)
                    client.get(reader, f"/feeds/{reader}")
                with self._lock:
                    self.accepted += 1
                    self.read += READS_A_POST
                progress(1)
                due = max(due + self._pause, time.monotonic())
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self._failures.append(error)
        finally:
            client.close()
