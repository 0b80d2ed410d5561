"""From a batch of Kafka records to committed effects: exactly once each, or a dead letter, never neither.

    records → decode → plan → [ lock keys → drop processed → apply → record as processed ] → after commit

The bracket is one PostgreSQL transaction. When it fails for a reason that lies in an event, the batch is halved
until the culprits stand alone: their neighbours commit at once, later events of a culprit's key wait behind it.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import structlog
from django.db import transaction

from eventbus import correlation, dead_letters, envelope, locks, metrics, retry
from eventbus.envelope import Event
from eventbus.exceptions import DeadLetterFlood, UndecodableEvent, WorkerStopping
from eventbus.models import ProcessedEvent
from eventbus.slowest import Slowest
from eventbus.subscription import Delivery, Facts, Record, Subscription

DeadLetter = Callable[[Record, BaseException, Delivery | None], None]
Chain = deque[Delivery]  # events of one key, in order

log = structlog.get_logger(__name__)


class Processor:
    """Applies batches for one subscription.

    `wait(seconds)` must keep the consumer alive meanwhile and raise `WorkerStopping` when it is time to leave;
    `still_ours(record)` tells whether the record's partition is still assigned to this consumer.
    """

    def __init__(
        self,
        subscription: Subscription,
        dead_letter: DeadLetter,
        wait: Callable[[float], None],
        still_ours: Callable[[Record], bool],
    ) -> None:
        self._subscription = subscription
        self._dead_letter = dead_letter
        self._wait = wait
        self._still_ours = still_ours
        self.worker_id = uuid4()
        self.slowest = Slowest()

    def process(self, records: Sequence[Record]) -> None:
        """Return when every record is applied, dead-lettered or no longer ours.

        Raises `WorkerStopping`, and `DeadLetterFlood` from the dead-letter writer.
        """
        deliveries = self._decode(records)
        correlation.bind_deliveries(deliveries)
        by_id = {delivery.event.event_id: delivery for delivery in deliveries}
        culprits: dict[int, Chain] = {}
        for facts in self._plan([delivery.fact for delivery in deliveries]):
            self._commit_neighbours([by_id[fact.event_id] for fact in facts], culprits)
        self._work_off(list(culprits.values()))

    def _plan(self, facts: Facts) -> list[list[Any]]:
        """Return the parts of the plan; a fact that cannot be planned stands alone, and `apply` decides."""
        try:
            return retry.until_possible(lambda: self._subscription.plan(facts), self._wait)
        except WorkerStopping:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_commit`
            log.warning("plan_failed", count=len(facts), error=retry.reason(error))
        if len(facts) <= 1:
            return [list(facts)]
        middle = len(facts) // 2
        return self._plan(facts[:middle]) + self._plan(facts[middle:])

    def _decode(self, records: Iterable[Record]) -> list[Delivery]:
        """Decode records; what can never be applied is a dead letter at once. The first of twins wins."""
        deliveries: dict[int, Delivery] = {}
        for record in records:
            delivery = None
            try:
                if record.headers_error:
                    raise UndecodableEvent(record.headers_error)
                delivery = Delivery(record, envelope.decode(record.value, record.key), taken_at=time.monotonic())
                delivery.fact = self._subscription.to_fact(delivery.event)
            except Exception as error:  # noqa: BLE001 - a bug in `to_fact` would fail again
                self._bury(record, error, delivery)
            else:
                first = deliveries.setdefault(delivery.event.event_id, delivery)
                if first is not delivery and dead_letters.entry_of(record) is not None:
                    first.replays.append(record)
        return list(deliveries.values())

    def _commit_neighbours(self, deliveries: list[Delivery], culprits: dict[int, Chain]) -> None:
        """Commit all that can be; move the chains of failing keys, and what follows them, into `culprits`."""
        for delivery in deliveries:
            if delivery.event.key in culprits:
                culprits[delivery.event.key].append(delivery)
        clean = [delivery for delivery in deliveries if delivery.event.key not in culprits]
        if self._commit(clean) is not None:
            culprits |= {chain[0].event.key: chain for chain in self._isolate(_chains(clean))}

    def _isolate(self, chains: list[Chain]) -> list[Chain]:
        """Commit the chains in ever smaller halves; return those that fail even alone."""
        if len(chains) == 1:
            return chains
        middle = len(chains) // 2
        culprits: list[Chain] = []
        for half in (chains[:middle], chains[middle:]):
            if self._commit([delivery for chain in half for delivery in chain], careful=True) is not None:
                culprits += self._isolate(half)
        return culprits

    def _work_off(self, chains: list[Chain]) -> None:
        """Advance all chains side by side, so that they share the waits between attempts."""
        while chains := [chain for chain in chains if not self._advance(chain)]:
            self._wait(retry.backoff(max(chain[0].attempts for chain in chains)))

    def _advance(self, chain: Chain) -> bool:
        """Apply a chain in order; False when its head has to wait for its next attempt."""
        while chain:
            error = self._commit([chain[0]], careful=True)
            if error is not None and not self._give_up(chain[0], error):
                return False
            chain.popleft()
        return True

    def _give_up(self, delivery: Delivery, error: Exception) -> bool:
        """Make the event a dead letter when another attempt is useless; False to have it tried again."""
        delivery.first_failed_at = delivery.first_failed_at or datetime.now(UTC)
        delivery.attempts += 1
        if retry.is_poison(error) or delivery.attempts >= retry.MAX_ATTEMPTS:
            for record in delivery.records:
                self._bury(record, error, delivery)
            return True
        metrics.event_retry_total.labels(delivery.event.type, retry.reason(error)).inc()
        return False

    def _bury(self, record: Record, error: Exception, delivery: Delivery | None) -> None:
        """Write a dead letter, for as long as it takes: its offset must not be committed before."""
        correlation.bind_failure(record, delivery)
        retry.until_possible(lambda: self._dead_letter(record, error, delivery), self._wait)

    def _commit(self, deliveries: list[Delivery], *, careful: bool = False) -> Exception | None:
        """Apply `deliveries` in one go; return the error if the fault lies in one of them."""
        ours = [delivery for delivery in deliveries if self._still_ours(delivery.record)]
        correlation.bind_deliveries(ours)
        try:
            self._apply_and_follow_up(ours, careful)
        except (WorkerStopping, DeadLetterFlood):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the event's failure, not ours
            log.warning("events_failed", count=len(ours), error=retry.reason(error))
            return error
        for delivery in ours:
            metrics.observe_processed(delivery.event.type, delivery.taken_at, delivery.record.timestamp_ms)
        correlation.note_processed(ours)
        if ours:
            self.slowest.note(ours)
        return None

    def _apply_and_follow_up(self, deliveries: list[Delivery], careful: bool) -> None:
        if not deliveries:
            return
        facts = [delivery.fact for delivery in deliveries]
        resume_after: Any = None
        while True:
            # Part by part, so that what passes does not send a large post back to its first follower.
            part = partial(self._transaction, deliveries, careful, resume_after)
            resume_after = retry.until_possible(part, self._wait)
            if resume_after is None:
                break
            self._wait(0)
        retry.until_possible(partial(self._subscription.after_commit, facts), self._wait)

    @transaction.atomic
    def _transaction(self, deliveries: list[Delivery], careful: bool, resume_after: Any) -> Any:
        events = [delivery.event for delivery in deliveries]
        locks.acquire_keys(event.key for event in events)
        processed = ProcessedEvent.objects.ids_among(events)
        fresh = [delivery for delivery in deliveries if delivery.event.event_id not in processed]
        more = None
        if fresh:
            facts = [delivery.fact for delivery in fresh]
            more = self._subscription.apply(facts, careful=careful, resume_after=resume_after)
        if more is None:
            ProcessedEvent.objects.record([delivery.event for delivery in fresh], _seconds(fresh), self.worker_id)
            dead_letters.close_replayed(record for delivery in deliveries for record in delivery.records)
            _count_redelivered(events, processed)
        return more


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
