"""The pipeline page of the admin: is everything there, does it keep up, what waits for someone.

Kafka and Redis are asked in other threads, none of which the page waits for longer than
`ASK_SECONDS`, and each question to PostgreSQL has a time-out of its own, as all to that of one cell
have together. What cannot be told in time is shown as unknown.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar

import structlog
from confluent_kafka import KafkaException
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.safestring import SafeString
from redis import RedisError

from eventbus import cell_pages, cells, kafka
from eventbus.cells import Cell
from eventbus.database import current
from eventbus.database.current import atomic
from eventbus.database.deadline import answer_within
from eventbus.database.sql import execute, fetch
from eventbus.watch import backlog, charts, pipeline
from eventbus.watch.pipeline import Rate, Worker
from feeds.models import CacheState

ASK_SECONDS = 0.8
QUERY_MS = 200
CELL_SECONDS = 2.0  # for all that is asked of the PostgreSQL of a cell
THREADS = 8  # for each cell; one is enough for each question
CREATE_TOPICS = "manage.py create_topics"


REDIS = "redis"

T = TypeVar("T")

_asked: dict[tuple[str, ...], Future[Any]] = {}
_asking = threading.Lock()

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What someone answered, or why not."""

    value: T | None
    problem: str = ""
    milliseconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class PartitionLag:
    number: int
    lag: int | None
    owner: Worker | None


@dataclass(frozen=True, slots=True)
class Lag:
    """The partitions of a topic, and what a group has not processed of each."""

    topic: str
    group: str
    partitions: list[PartitionLag]
    problem: str
    owners_known: bool

    @property
    def total(self) -> int | None:
        known = [partition.lag for partition in self.partitions if partition.lag is not None]
        return sum(known) if known and not self.problem else None

    @property
    def chart(self) -> SafeString:
        counts = [partition.lag or 0 for partition in self.partitions]
        return charts.bars(counts, title=f"Lag of {self.group} by partition", step=14, height=40)

    @property
    def unowned(self) -> int:
        missing = sum(1 for partition in self.partitions if partition.owner is None)
        return missing if self.owners_known else 0


def page(request: HttpRequest) -> TemplateResponse:
    """Show the pipeline to those who may see heartbeats; its dead letters to those who may see
    these.
    """
    if not request.user.has_perm("eventbus.view_workerheartbeat"):
        raise PermissionDenied
    started = time.monotonic()
    every = cells.every().values()
    asked = {cell.name: _ask_outside(cell) for cell in every}
    sees_dead_letters = request.user.has_perm("eventbus.view_deadlettergroup")
    context = {
        **admin.site.each_context(request),
        "title": "Pipeline",
        "now": timezone.now(),
        "cells": [_of_cell(cell, asked[cell.name], started, sees_dead_letters) for cell in every],
        "took_ms": 1_000 * (time.monotonic() - started),
    }
    return TemplateResponse(request, "admin/pipeline.html", context)


def _of_cell(
    cell: Cell, asked: Mapping[str, Future[Any]], started: float, sees_dead_letters: bool
) -> dict[str, Any]:
    """Return what the page shows of a cell."""
    with cells.on(cell), answer_within(CELL_SECONDS):
        postgres = _query(_ask_postgres)
        # Who does not even tell its version is not asked the rest.
        query = _query if postgres.ok else _not_asked
        rates, workers = query(pipeline.rates), query(pipeline.workers)
        cache_state = query(_cache_state)
        dead_letters = query(pipeline.dead_letters) if sees_dead_letters else None
    told = {name: _collect(future, started) for name, future in asked.items()}
    return {
        "name": cell.name,
        "dead_letters_page": cell_pages.address(cell, "admin:eventbus_deadletter_changelist"),
        "events_page": cell_pages.address(cell, "admin:eventbus_processedevent_changelist"),
        "id_suffix": f"-{cell.name}" if cell.name else "",
        "dependencies": _dependencies(cell, postgres, told, cache_state),
        "lags": [_lag(cell, group, told[group], workers) for group in _groups(cell)],
        "rates": rates,
        "chart": _chart(rates.value or []),
        "minutes": _minutes(rates.value or []),
        "type_charts": [(rate, _type_chart(rate)) for rate in rates.value or []],
        "workers": workers,
        "dead_letters": dead_letters,
        "slowest": pipeline.slowest(workers.value or []),
    }


def _groups(cell: Cell) -> dict[str, str]:
    with cells.on(cell):
        return kafka.groups()


def _ask_outside(cell: Cell) -> dict[str, Future[Any]]:
    lags = {
        group: _ask((group, topic), partial(backlog.lags, topic, group))
        for group, topic in _groups(cell).items()
    }
    return lags | {REDIS: _ask((cell.named(REDIS),), partial(_ask_redis, cell))}


def _ask(name: tuple[str, ...], question: Callable[[], Any]) -> Future[Any]:
    """Ask in another thread, or wait for the answer of who asked before: to a server that hangs, no
    second thread.
    """
    with _asking:
        if name not in _asked or _asked[name].done():
            _asked[name] = _threads().submit(_timed, question)
        return _asked[name]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS * len(cells.every()), thread_name_prefix="pipeline-page")


def _timed(ask: Callable[[], T]) -> Answer[T]:
    started = time.monotonic()
    try:
        value = ask()
    except (KafkaException, RedisError) as error:
        return Answer(None, f"unreachable ({type(error).__name__})")
    return Answer(value, milliseconds=1_000 * (time.monotonic() - started))


def _collect(future: Future[Answer[T]], started: float) -> Answer[T]:
    try:
        return future.result(timeout=max(0.0, started + ASK_SECONDS - time.monotonic()))
    except FutureTimeoutError:
        return Answer(None, f"no answer within {ASK_SECONDS} s")


def _not_asked(_read: Callable[[], T]) -> Answer[T]:
    return Answer(None, "no answer")


def _query(read: Callable[[], T]) -> Answer[T]:
    """Ask PostgreSQL, which may be so busy, or a table so locked, that it does not answer in
    time.
    """
    started = time.monotonic()
    try:
        with atomic():
            execute(f"SET LOCAL statement_timeout = {QUERY_MS}")
            value = read()
    except DatabaseError as error:
        log.warning("pipeline_page_without_answer", error=str(error))
        return Answer(None, f"no answer ({type(error).__name__})")
    return Answer(value, milliseconds=1_000 * (time.monotonic() - started))


def _ask_postgres() -> str:
    [(version, standby)] = fetch("SELECT current_setting('server_version'), pg_is_in_recovery()")
    return f"version {version}{', a standby that only reads' if standby else ''}"


def _cache_state() -> str:
    state = CacheState.objects.first()
    return (
        "first pages not cached: the cache is closed"
        if state and state.closed_at
        else "first pages cached"
    )


def _ask_redis(cell: Cell) -> None:
    with cells.on(cell):
        current.redis().ping()


def _dependencies(
    cell: Cell, postgres: Answer[str], told: Mapping[str, Answer[Any]], cache_state: Answer[str]
) -> list[tuple[str, Answer[Any], str]]:
    """Return name, answer and a remark of each dependency."""
    kafka_answer = told[cell.named(kafka.FANOUT_GROUP)]
    topics = kafka_answer.value
    remark = "" if topics is None else f"{len(topics)} partitions of {kafka.FEED_EVENTS}"
    if topics == {}:
        remark = f"no topic {kafka.FEED_EVENTS}: run {CREATE_TOPICS}"
    return [
        ("PostgreSQL", postgres, postgres.value or ""),
        ("Kafka", kafka_answer, remark or "the lag is unknown"),
        (
            "Redis",
            told[REDIS],
            cache_state.value or "" if told[REDIS].ok else "reads come from PostgreSQL",
        ),
    ]


def _lag(
    cell: Cell, group: str, lags: Answer[dict[int, int]], workers: Answer[list[Worker]]
) -> Lag:
    owners = pipeline.owners(workers.value or [], group)
    numbers = sorted((lags.value or {}).keys() | owners.keys())
    partitions = [
        PartitionLag(number, (lags.value or {}).get(number), owners.get(number))
        for number in numbers
    ]
    problem = f"no such topic, run {CREATE_TOPICS}" if lags.value == {} else lags.problem
    return Lag(_groups(cell)[group], group, partitions, problem, owners_known=workers.ok)


def _sums(rates: list[Rate]) -> list[int]:
    return [sum(rate.events[minute] for rate in rates) for minute in range(pipeline.MINUTES)]


def _chart(rates: list[Rate]) -> SafeString:
    counts = _sums(rates)
    return charts.bars(
        counts,
        title=f"{sum(counts):,} events processed in {pipeline.MINUTES} minutes, at most {max(counts):,} a minute",
        description="A bar for each minute, the one that runs at the right end. The table below has the numbers.",
        step=10,
        height=80,
    )


def _type_chart(rate: Rate) -> SafeString:
    return charts.bars(rate.events, title=f"{rate.type} a minute", step=3)


def _minutes(rates: list[Rate]) -> list[tuple[int, int]]:
    """Return (minutes ago, events) of the minutes in which something was processed, the latest
    first.
    """
    counts = enumerate(reversed(_sums(rates)))
    return [(ago, count) for ago, count in counts if count]
