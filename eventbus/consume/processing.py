"""From a batch of Kafka records to committed effects: exactly once each, or a dead letter, never
neither.

    records → decode → plan → [ lock keys → drop processed → apply → record as processed ] → after commit

The bracket is one PostgreSQL transaction. When it fails for a reason that lies in an event, or is
too much at once, the batch is halved until the culprits stand alone: their neighbours commit at
once, later events of a culprit's key wait behind it. What was too much is remembered for the next
batches (`eventbus.portion`).
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import structlog

from eventbus import envelope, metrics, retry
from eventbus.consume.slowest import Slowest
from eventbus.database import locks
from eventbus.database.current import atomic
from eventbus.dead_letter_headers import is_for_another
from eventbus.deadletters import letters
from eventbus.event import Event
from eventbus.exceptions import DeadLetterFlood, UndecodableEvent, WorkerStopping
from eventbus.models import ProcessedEvent
from eventbus.portion import Portion
from eventbus.record import Delivery, Record
from eventbus.subscription import Facts, Handlers, Turn, Work
from eventbus.telemetry import correlation

Chain = deque[Delivery]  # events of one key, in order

log = structlog.get_logger(__name__)


class Processor(Work):
    """The work of `run_fanout`: has batches applied by an app's handlers.

    Several lanes may be in `process` at once.
    """

    def __init__(self, handlers: Handlers[Any]) -> None:
        self._handlers = handlers
        self.worker_id = uuid4()
        self.slowest = Slowest()
        self._portion = Portion()

    def process(self, records: Sequence[Record], turn: Turn) -> None:
        """Return when every record is applied, dead-lettered or no longer ours.

        Raises `WorkerStopping`, and `DeadLetterFlood` from `turn.bury`.
        """
        deliveries = self._decode(turn, records)
        correlation.bind_deliveries(deliveries)
        by_id = {delivery.event.event_id: delivery for delivery in deliveries}
        # By key, through all parts of all plans: a later event of the key may be in a later part.
        culprits: dict[int, Chain] = {}
        for portion in self._portion.cut([delivery.fact for delivery in deliveries]):
            for facts in self._plan(turn, portion):
                self._commit_neighbours(turn, [by_id[fact.event_id] for fact in facts], culprits)
        self._work_off(turn, list(culprits.values()))

    def _plan(self, turn: Turn, facts: Facts) -> list[list[Any]]:
        """Return the parts of the plan; a fact that cannot be planned stands alone, and `apply`
        decides.
        """
        try:
            return retry.until_too_much(turn.wait, self._handlers.plan, facts)
        except WorkerStopping:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_commit`
            log.warning("plan_failed", count=len(facts), error=retry.reason(error))
            self._note_failure(error, len(facts))
        if len(facts) <= 1:
            return [list(facts)]
        middle = len(facts) // 2
        return self._plan(turn, facts[:middle]) + self._plan(turn, facts[middle:])

    def _decode(self, turn: Turn, records: Iterable[Record]) -> list[Delivery]:
        """Decode records; what can never be applied is a dead letter at once."""
        deliveries: dict[int, Delivery] = {}
        for record in records:
            delivery = None
            try:
                if record.headers_error:
                    raise UndecodableEvent(record.headers_error)
                delivery = Delivery(
                    record, envelope.decode(record.value, record.key), taken_at=time.monotonic()
                )
                delivery.fact = self._handlers.to_fact(delivery.event)
            except Exception as error:  # noqa: BLE001 - a bug in `to_fact` would fail again
                # What is of another cell has been buried here before, or will be.
                if not is_for_another(record):
                    self._bury(turn, record, error, delivery)
            else:
                _add(deliveries, delivery)
        return self._without_replays_for_others(turn, list(deliveries.values()))

    def _without_replays_for_others(self, turn: Turn, deliveries: list[Delivery]) -> list[Delivery]:
        """Leave out what another cell replays and is a dead letter here too: it waits for a replay
        of ours, or was discarded.

        What was processed here is not processed again anyway; what has never come here is an event
        like any other.
        """
        replays = {
            delivery.event.event_id for delivery in deliveries if is_for_another(delivery.record)
        }
        if not replays:
            return deliveries
        failed = retry.until_possible(turn.wait, letters.not_resolved_among, replays)
        return [delivery for delivery in deliveries if delivery.event.event_id not in failed]

    def _commit_neighbours(
        self, turn: Turn, deliveries: list[Delivery], culprits: dict[int, Chain]
    ) -> None:
        """Commit all that can be; move the chains of failing keys, and what follows them, into
        `culprits`.
        """
        for delivery in deliveries:
            if delivery.event.key in culprits:
                culprits[delivery.event.key].append(delivery)
        clean = [delivery for delivery in deliveries if delivery.event.key not in culprits]
        if self._commit(turn, clean) is not None:
            culprits |= {chain[0].event.key: chain for chain in self._isolate(turn, _chains(clean))}

    def _isolate(self, turn: Turn, chains: list[Chain]) -> list[Chain]:
        """Commit the chains in ever smaller halves; return those that fail even alone."""
        if len(chains) == 1:
            return chains
        middle = len(chains) // 2
        culprits: list[Chain] = []
        for half in (chains[:middle], chains[middle:]):
            # Of whole chains, so that no event passes an earlier one of its key in the other half.
            together = [delivery for chain in half for delivery in chain]
            # No try where less has just been too much.
            is_worth_a_try = self._portion.fits(len(together))
            if is_worth_a_try and self._commit(turn, together, careful=True) is None:
                continue
            culprits += self._isolate(turn, half)
        return culprits

    def _work_off(self, turn: Turn, chains: list[Chain]) -> None:
        """Advance all chains side by side, so that they share the waits between attempts."""
        while chains := [chain for chain in chains if not self._advance(turn, chain)]:
            turn.wait(retry.backoff(max(chain[0].attempts for chain in chains)))

    def _advance(self, turn: Turn, chain: Chain) -> bool:
        """Apply a chain in order; False when its head has to wait for its next attempt."""
        while chain:
            error = self._commit(turn, [chain[0]], careful=True)
            if error is not None and not self._give_up(turn, chain[0], error):
                return False
            # Applied or buried: either way the next event of the key may go.
            chain.popleft()
        return True

    def _give_up(self, turn: Turn, delivery: Delivery, error: Exception) -> bool:
        """Make the event a dead letter when another attempt is useless; False to have it tried
        again.
        """
        delivery.first_failed_at = delivery.first_failed_at or datetime.now(UTC)
        delivery.attempts += 1
        if retry.is_poison(error) or delivery.attempts >= retry.MAX_ATTEMPTS:
            for record in delivery.records:
                self._bury(turn, record, error, delivery)
            return True
        metrics.event_retry_total.labels(delivery.event.type, retry.reason(error)).inc()
        return False

    def _bury(
        self, turn: Turn, record: Record, error: Exception, delivery: Delivery | None
    ) -> None:
        """Write a dead letter, for as long as it takes: its offset must not be committed before."""
        correlation.bind_failure(record, delivery)
        retry.until_possible(turn.wait, _bury_once, turn, record, error, delivery)

    def _commit(
        self, turn: Turn, deliveries: list[Delivery], *, careful: bool = False
    ) -> Exception | None:
        """Apply `deliveries` in one go; return the error if the fault lies in one of them."""
        # What has left us is another worker's by now. This only spares the work: that both apply it
        # is prevented by the key's lock and `processed_events`.
        ours = [delivery for delivery in deliveries if turn.still_ours(delivery.record)]
        correlation.bind_deliveries(ours)
        try:
            self._apply_and_follow_up(turn, ours, careful)
        except (WorkerStopping, DeadLetterFlood):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the event's failure, not ours
            log.warning("events_failed", count=len(ours), error=retry.reason(error))
            self._note_failure(error, len(ours))
            return error
        self._portion.went_well(len(ours))
        for delivery in ours:
            metrics.observe_processed(
                delivery.event.type, delivery.taken_at, delivery.record.timestamp_ms
            )
        correlation.note_processed(ours)
        if ours:
            self.slowest.note(ours)
        return None

    def _note_failure(self, error: Exception, count: int) -> None:
        if retry.is_too_much(error):
            self._portion.was_too_much(count)

    def _apply_and_follow_up(self, turn: Turn, deliveries: list[Delivery], careful: bool) -> None:
        """Commit `deliveries`, in several transactions if they are a large one, then make their
        pages void.

        Raises `WorkerStopping` before any of these transactions when it is time to leave.
        """
        if not deliveries:
            return
        facts = [delivery.fact for delivery in deliveries]
        # What is too much together may fit in halves. One event alone cannot be made less: that
        # waits, and is no dead letter for it.
        repeat = retry.until_too_much if len(deliveries) > 1 else retry.until_possible
        resume_after: Any = None
        while True:
            if turn.stopping():
                raise WorkerStopping
            # Part by part, so that what passes does not send a large post back to its first
            # follower.
            resume_after = repeat(turn.wait, self._transaction, deliveries, careful, resume_after)
            if resume_after is None:
                break
        retry.until_possible(turn.wait, self._handlers.after_commit, facts)

    @atomic()
    def _transaction(self, deliveries: list[Delivery], careful: bool, resume_after: Any) -> Any:
        events = [delivery.event for delivery in deliveries]
        locks.acquire_keys(self._handlers.locked_keys([delivery.fact for delivery in deliveries]))
        # Under the locks: whoever else had these events in hand has committed, or rolled back.
        processed = ProcessedEvent.objects.ids_among(events)
        fresh = [delivery for delivery in deliveries if delivery.event.event_id not in processed]
        more = None
        if fresh:
            facts = [delivery.fact for delivery in fresh]
            more = self._handlers.apply(facts, careful=careful, resume_after=resume_after)
        # A large post counts as processed with its last part: after a crash all parts come again.
        if more is None:
            ProcessedEvent.objects.record(
                [delivery.event for delivery in fresh], _seconds(fresh), self.worker_id
            )
            letters.close_replayed(record for delivery in deliveries for record in delivery.records)
            _count_redelivered(events, processed)
        return more


def _bury_once(turn: Turn, record: Record, error: Exception, delivery: Delivery | None) -> None:
    """Write a dead letter if the record is still ours.

    Raises `WorkerStopping` when it is time to leave: whoever comes next fails at the record too.
    """
    if turn.stopping():
        raise WorkerStopping
    # Whoever has the partition now may have applied it meanwhile, and buries it if not.
    if turn.still_ours(record):
        turn.bury(record, error, delivery)


def _add(deliveries: dict[int, Delivery], delivery: Delivery) -> None:
    """Add a delivery by its event: the first of twins wins, but for what another cell replays."""
    record = delivery.record
    first = deliveries.setdefault(delivery.event.event_id, delivery)
    if first is delivery or is_for_another(record):
        return
    if is_for_another(first.record):
        deliveries[delivery.event.event_id] = delivery
    elif letters.entry_of(record) is not None:
        first.replays.append(record)


def _chains(deliveries: Iterable[Delivery]) -> list[Chain]:
    chains: dict[int, Chain] = defaultdict(deque)
    for delivery in deliveries:
        chains[delivery.event.key].append(delivery)
    return list(chains.values())


def _seconds(deliveries: Iterable[Delivery]) -> list[float]:
    """Return how long each event has been in hand."""
    now = time.monotonic()
    return [now - delivery.taken_at for delivery in deliveries]


def _count_redelivered(events: Iterable[Event], processed: set[int]) -> None:
    for event in events:
        if event.event_id in processed:
            metrics.events_redelivered_total.labels(event.type).inc()
