"""What the pipeline page shows of the workers and their work, each in one bounded query."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import ExpressionWrapper, F, fields
from django.db.models.functions import Now

from eventbus.database.sql import fetch
from eventbus.models import DeadLetter, DeadLetterGroup, WorkerHeartbeat

MINUTES = 60
LATE_SECONDS = 15.0  # five beats
GROUPS_SHOWN = 10
COUNTED = 1_000  # of more dead letters it is enough to know that they are more
SLOWEST_SHOWN = 10

_RATES = """
SELECT type, (extract(epoch FROM date_trunc('minute', now()) - minute) / 60)::int AS ago, sum(events), sum(seconds)
FROM pipeline_minutes
WHERE minute > date_trunc('minute', now()) - make_interval(mins => %s) AND minute <= date_trunc('minute', now())
GROUP BY 1, 2
"""

_UNRESOLVED = """
SELECT counted.id, (
    SELECT count(*) FROM (
        SELECT FROM dead_letters WHERE group_id = counted.id AND state = ANY(%(unresolved)s)
        ORDER BY state LIMIT %(most)s
    ) AS found
)
FROM unnest(%(groups)s::bigint[]) AS counted (id)
"""

_FAILED_LAST_HOUR = """
SELECT count(*) FROM (
    SELECT FROM dead_letters
    WHERE state IN ('open', 'replayed', 'parked') AND last_failed_at > now() - interval '1 hour'
    ORDER BY last_failed_at LIMIT %s
) AS found
"""
_WAITING = """
SELECT count(*) FROM (
    SELECT FROM dead_letters WHERE state IN ('open', 'replayed', 'parked')
    ORDER BY last_failed_at LIMIT %s
) AS found
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """The events of a type processed in each of the last `MINUTES` minutes, the one that runs
    last.
    """

    type: str
    events: Sequence[int]
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.events)

    @property
    def last_five_minutes(self) -> int:
        return sum(self.events[-5:])

    @property
    def mean_ms(self) -> float:
        return 1_000 * self.seconds / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Worker:
    row: WorkerHeartbeat
    silent_seconds: float

    @property
    def state(self) -> str:
        """Return `left` (as told), `silent` (killed, frozen or cut off) or `alive`."""
        if self.row.left_at is not None:
            return "left"
        return "silent" if self.silent_seconds > LATE_SECONDS else "alive"

    @property
    def busy_seconds(self) -> float:
        """For how long the batch in hand has been worked on, also by a worker that tells it no
        more.
        """
        silent = self.silent_seconds if self.state == "silent" else 0.0
        return self.row.busy_seconds + silent if self.row.records_in_hand else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """A cause of dead letters; of `unresolved` entries no more than `COUNTED` are counted."""

    row: DeadLetterGroup
    unresolved: int

    @property
    def unresolved_text(self) -> str:
        return at_most(self.unresolved)


@dataclass(frozen=True, slots=True)
class DeadLetters:
    waiting: str
    last_hour: str
    groups: Sequence[Group]


def at_most(count: int) -> str:
    """Return a count that ends at `COUNTED` as text."""
    return f"{COUNTED:,}+" if count > COUNTED else f"{count:,}"


def rates() -> list[Rate]:
    """Return the rate of each type that was processed within the last hour, by type.

    Raises `DatabaseError`.
    """
    events: dict[str, list[int]] = defaultdict(lambda: [0] * MINUTES)
    seconds: dict[str, float] = defaultdict(float)
    for event_type, ago, count, spent in fetch(_RATES, [MINUTES]):
        events[event_type][MINUTES - 1 - ago] = int(count)
        seconds[event_type] += spent
    return [Rate(name, counts, seconds[name]) for name, counts in sorted(events.items())]


def workers() -> list[Worker]:
    """Return the workers of the last hour: the living first, then by when they were last seen."""
    silence = ExpressionWrapper(Now() - F("last_seen_at"), output_field=fields.DurationField())
    rows: Any = WorkerHeartbeat.objects.annotate(silence=silence).order_by("-last_seen_at")[:100]
    found = [Worker(row, row.silence.total_seconds()) for row in rows]
    return sorted(
        found,
        key=lambda worker: (["alive", "silent", "left"].index(worker.state), worker.row.group),
    )


def owners(found: Sequence[Worker], group: str) -> dict[int, Worker]:
    """Return which living worker of the group has which partition."""
    living = (worker for worker in found if worker.row.group == group and worker.state == "alive")
    return {partition: worker for worker in living for partition in worker.row.partitions}


def slowest(found: Sequence[Worker]) -> list[dict[str, Any]]:
    """Return the slowest events of the last hour, each worker's slowest of a minute, slowest
    first.
    """
    oldest = (datetime.now(UTC) - timedelta(minutes=MINUTES)).timestamp()
    told = (event | {"worker": worker.row} for worker in found for event in worker.row.slowest)
    fresh = [
        event | {"at": datetime.fromtimestamp(event["done_at"], UTC)}
        for event in told
        if event["done_at"] > oldest
    ]
    return sorted(fresh, key=lambda event: -event["seconds"])[:SLOWEST_SHOWN]


def dead_letters() -> DeadLetters:
    """Return the causes seen last, and how many entries wait for someone.

    Raises `DatabaseError`.
    """
    rows = list(DeadLetterGroup.objects.order_by("-last_seen")[:GROUPS_SHOWN])
    counts = unresolved([row.id for row in rows])
    [[last_hour]] = fetch(_FAILED_LAST_HOUR, [COUNTED + 1])
    return DeadLetters(waiting(), at_most(last_hour), [Group(row, counts[row.id]) for row in rows])


def waiting() -> str:
    """Return how many entries wait for someone. Raises `DatabaseError`."""
    [[count]] = fetch(_WAITING, [COUNTED + 1])
    return at_most(count)


def unresolved(groups: Sequence[int]) -> dict[int, int]:
    """Return how many entries of each group are unresolved, `COUNTED` + 1 of any more.

    Raises `DatabaseError`.
    """
    values = {
        "groups": list(groups),
        "unresolved": [state.value for state in DeadLetter.UNRESOLVED],
        "most": COUNTED + 1,
    }
    return dict(fetch(_UNRESOLVED, values))
