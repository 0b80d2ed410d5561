"""Until when a thread waits for PostgreSQL's answers.

The connections of this project keep to it (`feedsite.postgresql.connection`): a server that stands
still would be waited for as long as that lasts.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_thread = threading.local()


@contextmanager
def answer_within(seconds: float) -> Iterator[None]:
    """Have what this thread asks of PostgreSQL in here fail with `OperationalError` once `seconds`
    have passed, or once a deadline around this one has.
    """
    outer = deadline()
    _thread.deadline = min(time.monotonic() + seconds, outer or math.inf)
    try:
        yield
    finally:
        _thread.deadline = outer


def deadline() -> float | None:
    """Return until when this thread waits for PostgreSQL, in monotonic seconds; None: for as long
    as it takes.
    """
    until: float | None = getattr(_thread, "deadline", None)
    return until
