"""What other processes do at the same time: a thread with a connection of its own."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from django.db import connection


@contextmanager
def elsewhere() -> Iterator[Callable[..., Future[Any]]]:
    """Give what runs a function with its arguments in another thread; wait for it at the end."""

    def run(act: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return act(*arguments)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        yield lambda act, *arguments: pool.submit(run, act, *arguments)


def somebody_waits() -> bool:
    """Tell whether a connection waits for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        (waiting,) = cursor.fetchone()
    return bool(waiting)
