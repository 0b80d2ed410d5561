"""What became of an event that was accepted, by the word of the cell we are on: what its readers see
is what this cell has made of it. An erasure alone is what every cell has made of it.
"""

from dataclasses import dataclass, replace

import structlog
from django.conf import settings
from django.db import DatabaseError

from eventbus import cells, envelope
from eventbus.cells import Cell
from eventbus.database.current import asking
from eventbus.deadletters.erasing import ERASURE
from eventbus.exceptions import PoisonEvent
from eventbus.ids import clock
from eventbus.ids.snowflake import milliseconds_of
from eventbus.models import DeadLetter, Erasure, ProcessedEvent

# Of this host, before it has read PostgreSQL's clock.
CLOCK_SKEW_MS = 60_000
# So long a cell is asked whether it has erased a user.
OTHER_CELL_ANSWER_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    event_id: int
    type: str | None  # not known while pending
    state: str  # pending, processed, dead_lettered
    actor_id: int | None  # not known while pending, nor of what cannot be decoded, nor of old ones
    step: str | None = None  # what is being erased, of an erasure that is not finished

    def is_business_of(self, user_id: int) -> bool:
        """Tell whether this user may know it: whose event it was, or anybody where it tells
        nothing.

        Every id of the last days may be pending. Events from before the actor was kept are told to
        anybody.
        """
        if self.state == "dead_lettered":
            return self.actor_id == user_id
        return self.actor_id in (user_id, None)


def outcome_everywhere(event_id: int) -> Outcome | None:
    """Return the outcome of an event as whoever caused it is to be told: as `outcome_of`, but an
    erasure is processed only when every cell has erased the user. One that does not answer has not.
    """
    outcome = outcome_of(event_id)
    if outcome is None or outcome.type != ERASURE or outcome.state != "processed":
        return outcome
    here = cells.here()
    for cell in cells.every().values():
        there = outcome if cell == here else _outcome_in(cell, outcome)
        if there.state != "processed":
            return there
    return outcome


def _outcome_in(cell: Cell, known: Outcome) -> Outcome:
    try:
        with asking(cell, OTHER_CELL_ANSWER_SECONDS):
            found = outcome_of(known.event_id)
    except DatabaseError as error:
        log.warning("erasure_in_cell_not_known", cell=cell.name, error=str(error))
        return replace(known, state="pending")
    if found is None:  # of so long ago that it is on record in one of them alone
        return known
    return replace(known, state=found.state, step=found.step)


def outcome_of(event_id: int) -> Outcome | None:
    """Return the outcome of an event, or None for an id that cannot be one of an event still on
    record.

    Pending events are only in Kafka, so an id counts as pending when its time lies within the
    topic's retention.
    """
    processed = ProcessedEvent.objects.filter(event_id=event_id).first()
    if processed:
        step = _step_of(processed)
        state = "processed" if step is None else "pending"
        return Outcome(event_id, processed.type, state, processed.actor_id, step)
    # Not the last in the order of ids, for which all ids may be gone through: these are few.
    unresolved = DeadLetter.objects.filter(event_id=event_id).exclude(
        state=DeadLetter.State.RESOLVED
    )
    ids = list(unresolved.values_list("id", flat=True))
    dead = DeadLetter.objects.filter(id=max(ids)).first() if ids else None
    if dead:
        return Outcome(event_id, dead.event_type, "dead_lettered", _actor_of(dead))
    age_ms = clock.now_ms() - milliseconds_of(event_id)
    if -CLOCK_SKEW_MS <= age_ms <= settings.KAFKA_RETENTION_HOURS * 3_600_000:
        return Outcome(event_id, None, "pending", None)
    return None


def _step_of(processed: ProcessedEvent) -> str | None:
    """Return what an erasure is at; None once it is through, and for anything else."""
    under_way = Erasure.objects.filter(event_id=processed.event_id, finished_at=None).first()
    return under_way.step if under_way else None


def _actor_of(dead: DeadLetter) -> int | None:
    try:
        return envelope.decode(bytes(dead.value or b""), bytes(dead.key or b"")).actor_id
    except PoisonEvent:
        return None
