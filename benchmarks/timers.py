"""Where the time of a batch goes, measured from outside: no production code knows of it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection

from eventbus.subscription import Handlers

# The first pattern found in a statement names its part.
STATEMENTS = {
    "advisory_xact_lock": "locks of the authors",
    'INSERT INTO "processed_events"': "processed_events: record",
    '"processed_events"': "processed_events: look up",
    "INTO processed_events": "processed_events: record",
    "INTO posts": "posts: insert",
    "INTO feed_entries": "feed_entries: insert",
    "feeds": "feeds: look up, ensure",
}


@dataclass(frozen=True)
class _Timed:
    to_fact: Callable[..., Any]
    locked_keys: Callable[..., Any]
    plan: Callable[..., Any]
    apply: Callable[..., Any]
    after_commit: Callable[..., Any]


class Timers:
    """Seconds by part.

    Parts nest: the time of an inner one is not counted for the outer one as well.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its own time counted for `part`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                total = time.perf_counter() - started
                self.seconds[part] += total - self._inner.pop()
                self._inner[-1] += total

        return run

    def handlers(self, handlers: Handlers[Any]) -> Handlers[Any]:
        """Return `handlers` with each of their functions timed."""
        return _Timed(
            to_fact=self.timed("Python: facts", handlers.to_fact),
            locked_keys=self.timed("Python: facts", handlers.locked_keys),
            plan=self.timed("Python: plan", handlers.plan),
            apply=self.timed("Python: apply", handlers.apply),
            after_commit=self.timed("invalidation of cached pages", handlers.after_commit),
        )

    @contextmanager
    def statements(self) -> Iterator[None]:
        """Time each SQL statement, and commits."""
        commit = connection.commit
        connection.commit = self.timed("commit", commit)  # type: ignore[method-assign]
        try:
            with connection.execute_wrapper(self._statement):
                yield
        finally:
            connection.commit = commit  # type: ignore[method-assign]

    def _statement(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        part = next(
            (name for pattern, name in STATEMENTS.items() if pattern in sql), "other statements"
        )
        return self.timed(part, execute)(sql, params, many, context)
