"""`run_fanout` without Kafka: batches of facts in, committed feeds out."""

from collections.abc import Callable
from typing import Any

from eventbus.consume.processing import Processor
from eventbus.record import Delivery, Record
from eventbus.subscription import Handlers
from feeds.handlers import FeedHandlers
from tests.eventbus.events import a_record


class Worker:
    """Processes facts as the real worker does, in turns of its own.

    `stops` is asked wherever a worker looks whether it was told to stop: before each transaction.
    """

    def __init__(self, feed_handlers: Handlers[Any] | None = None) -> None:
        self.dead_letters: list[BaseException] = []
        self.asked = 0
        self.waits = 0
        self.stops: Callable[[], bool] = lambda: False
        self._processor = Processor(feed_handlers or FeedHandlers())

    def process(self, *facts: Any) -> None:
        """Process one batch. Raises `WorkerStopping` when it stopped in the middle."""
        records = [a_record(fact.to_event(), offset) for offset, fact in enumerate(facts)]
        self._processor.process(records, self)

    def stopping(self) -> bool:
        self.asked += 1
        return self.stops()

    def wait(self, _seconds: float) -> None:
        self.waits += 1

    def still_ours(self, _record: Record) -> bool:
        return True

    def bury(self, _record: Record, error: BaseException, _delivery: Delivery | None) -> None:
        self.dead_letters.append(error)
