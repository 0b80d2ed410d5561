"""What the benchmarks do to PostgreSQL besides running the system."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from django.db import connection

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database()"


def execute(statement: str, values: Any = None) -> int:
    """Run a statement; return the number of rows it touched."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.rowcount)


def value(query: str, values: Any = None) -> Any:
    """Return the only value of a query."""
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchone()[0]


def column(query: str, values: Any = None) -> list[Any]:
    """Return the first column of a query."""
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return [row[0] for row in cursor.fetchall()]


def checkpoint() -> None:
    """Write out what is dirty, so that no measurement pays for what came before it."""
    # CHECKPOINT is for superusers; dropping a database forces one.
    execute("CREATE DATABASE checkpoint")
    execute("DROP DATABASE checkpoint")


@dataclass
class Cost:
    """What something took: seconds, and seconds of CPU of this process and of the PostgreSQL
    backends.
    """

    seconds: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.cpu + other.cpu)


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure what is done inside; the CPU time tells more than the clock where other work runs
    beside.
    """
    cost = Cost()
    cpu, started = _cpu(), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - started
    cost.cpu = _cpu() - cpu


def _cpu() -> float:
    times = [psutil.Process(pid).cpu_times() for pid in column(_BACKENDS)]
    return time.process_time() + sum(float(of.user + of.system) for of in times)
