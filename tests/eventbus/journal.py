"""Small handlers to process events with: its effect is a row an event, and it fails on command.

The payload of an event is its command: `fails` names a function below, and `times` how often it is
to fail.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from django.db import connection

from eventbus.event import Event
from eventbus.exceptions import InvalidEvent
from eventbus.models import ProcessedEvent

ALWAYS = 1_000_000


def execute(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def bug() -> None:
    raise RuntimeError("a bug in the handler")


def constraint() -> None:
    execute("INSERT INTO processed_events (event_id, type) VALUES (1, NULL)")


def outage() -> None:
    execute("SELECT pg_terminate_backend(pg_backend_pid())")


def statement_timeout() -> None:
    execute("SET LOCAL statement_timeout = 1")
    execute("SELECT pg_sleep(10)")


def raises(sqlstate: str) -> None:
    """Have PostgreSQL answer with this error."""
    execute(f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{sqlstate}'; END $$")


def crash() -> None:
    raise SystemExit


FAILURES: dict[str, Callable[[], None]] = {
    failure.__name__: failure for failure in (bug, constraint, outage, crash)
}


class Journal:
    """What was done, and what was seen while doing it.

    The table has no unique constraint, so that an event applied twice shows, and keeps the order of
    the rows.
    """

    def __init__(self, part_size: int = ALWAYS, parts_of_one: int = 1) -> None:
        self.part_size = part_size
        self.parts_of_one = parts_of_one
        self.calls: list[list[int]] = []  # events of each call of `apply`
        self.careful_calls = 0
        self.most = ALWAYS  # events that fit one transaction
        self.too_much: Callable[[], None] = statement_timeout
        self.on_apply: Callable[[list[int]], None] = lambda _events: None
        self.followed_up: list[list[int]] = []  # events of each call of `after_commit`
        self.follow_up_failures: list[BaseException] = []
        self._failed: Counter[int] = Counter()
        execute("DROP TABLE IF EXISTS journal")
        execute(
            "CREATE TABLE journal (n bigserial, event_id bigint, part int, xid xid8 DEFAULT pg_current_xact_id())"
        )

    def to_fact(self, event: Event) -> Event:
        if event.payload.get("fails") == "to_fact":
            raise InvalidEvent("This note can never be taken.")
        if event.payload.get("fails") == "to_fact by a bug":
            bug()
        return event

    def locked_keys(self, events: Sequence[Event]) -> set[int]:
        return {event.key for event in events}

    def plan(self, events: Sequence[Event]) -> list[list[Event]]:
        for event in events:
            if event.payload.get("plan_fails"):
                bug()
        return [list(events[i : i + self.part_size]) for i in range(0, len(events), self.part_size)]

    def apply(
        self, events: Sequence[Event], *, careful: bool, resume_after: int | None
    ) -> int | None:
        self.calls.append([event.event_id for event in events])
        self.careful_calls += careful
        self.on_apply(self.calls[-1])
        if len(events) > self.most:
            self.too_much()
        part = 1 if resume_after is None else resume_after + 1
        for event in events:
            execute("INSERT INTO journal (event_id, part) VALUES (%s, %s)", event.event_id, part)
            self._fail_on_command(event)
        return None if part == self.parts_of_one else part

    def after_commit(self, events: Sequence[Event]) -> None:
        self.followed_up.append([event.event_id for event in events])
        if self.follow_up_failures:
            raise self.follow_up_failures.pop(0)

    def rows(self) -> list[int]:
        """Return the events in the order of their rows."""
        return [event_id for (event_id,) in execute("SELECT event_id FROM journal ORDER BY n")]

    def tries(self, event_id: int) -> tuple[int, int]:
        """Return how often the event was tried together with others, and alone."""
        calls = [call for call in self.calls if event_id in call]
        alone = calls.count([event_id])
        return len(calls) - alone, alone

    def _fail_on_command(self, event: Event) -> None:
        name = event.payload.get("fails")
        if name in FAILURES and self._failed[event.event_id] < event.payload.get("times", ALWAYS):
            self._failed[event.event_id] += 1
            FAILURES[name]()


def processed() -> set[int]:
    """Return the events that are recorded as processed."""
    return set(ProcessedEvent.objects.values_list("event_id", flat=True))
