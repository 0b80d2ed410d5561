"""`run_fanout` without Kafka: batches of facts in, committed feeds out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eventbus.exceptions import WorkerStopping
from eventbus.processing import Processor
from eventbus.subscription import Delivery, Record
from feeds import handlers
from tests.eventbus.events import a_record


class Worker:
    """Processes facts as the real worker does; `changes` replace parts of its subscription.

    `stops` is asked wherever a worker looks whether it was told to stop: between two parts of a large post.
    """

    def __init__(self, **changes: Any) -> None:
        self.dead_letters: list[BaseException] = []
        self.waits = 0
        self.stops: Callable[[], bool] = lambda: False
        subscription = replace(handlers.subscription(), **changes)
        self._processor = Processor(subscription, self._bury, self._wait, still_ours=lambda _record: True)

    def process(self, *facts: Any) -> None:
        """Process one batch. Raises `WorkerStopping` when it stopped in the middle."""
        self._processor.process([a_record(fact.to_event(), offset) for offset, fact in enumerate(facts)])

    def _bury(self, _record: Record, error: BaseException, _delivery: Delivery | None) -> None:
        self.dead_letters.append(error)

    def _wait(self, _seconds: float) -> None:
        self.waits += 1
        if self.stops():
            raise WorkerStopping
