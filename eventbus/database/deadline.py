"""Until when a thread waits for PostgreSQL's answers.

The connections of this project keep to it (`feedsite.postgresql.connection`): a server that stands
still would be waited for as long as that lasts.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

_thread = threading.local()


class AnswerTooLate(psycopg.OperationalError):
    """PostgreSQL did not answer in time."""


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


@contextmanager
def each_answer_within(seconds: float) -> Iterator[None]:
    """Have each question of this thread to PostgreSQL in here fail with `OperationalError` once it
    has waited so long, however many there are.
    """
    outer = getattr(_thread, "patience", None)
    _thread.patience = seconds
    try:
        yield
    finally:
        _thread.patience = outer


def answer_by() -> float | None:
    """Return until when the answer to what is asked now is waited for, as `deadline` does."""
    patience: float | None = getattr(_thread, "patience", None)
    if patience is None:
        return deadline()
    return min(time.monotonic() + patience, deadline() or math.inf)
