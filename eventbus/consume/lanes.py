"""Lanes: the threads of one worker that process a batch side by side.

A batch is split by key, so that the events of a key stay in order, in one lane. To PostgreSQL, and
so to everything that guards a feed, a lane is what another worker is: a connection, transactions
and key locks of its own. While PostgreSQL writes the rows of one lane, another decodes events or
makes cached pages void.
"""

import math
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextvars import Context, copy_context
from queue import SimpleQueue

from eventbus.consume.leaving import Leaving
from eventbus.database.current import connection
from eventbus.exceptions import ServerAway, WorkerStopping
from eventbus.record import Delivery, Record
from eventbus.subscription import Burial, Membership, Turn, Work

# A smaller batch is one transaction faster than it is two.
EVENTS_WORTH_A_LANE = 25
# So often one that waits looks whether it is to leave.
LOOK_SECONDS = 0.2
# When a lane has failed, the worker's end waits so long for what the others are at.
PATIENCE_SECONDS = 10.0


class LaneTurn(Turn):
    """The `Turn` of one lane: its share of a batch, and the signs of life it gives while it works
    on that.
    """

    def __init__(
        self, records: Sequence[Record], members: Membership, burial: Burial, leaving: Leaving
    ) -> None:
        self.records = records
        self.outcome: Future[None] = Future()
        self.waits = False
        self.waits_since: float | None = None  # over all attempts, until one has succeeded
        self.asked_at = time.monotonic()
        self._members = members
        self._burial = burial
        self._leaving = leaving

    def stopping(self) -> bool:
        """See `Turn`. To ask is to live: see `Batch.all_asked_since`."""
        # Between two transactions: what was waited for has come.
        self.waits_since = None
        return self._look()

    def wait(self, seconds: float) -> None:
        """See `Turn`."""
        now = time.monotonic()
        deadline = now + seconds
        if self.waits_since is None:
            self.waits_since = now
        self.waits = True
        while not self._look():
            left = deadline - time.monotonic()
            if left <= 0:
                self.waits = False
                return
            time.sleep(min(left, LOOK_SECONDS))
        raise WorkerStopping

    def waits_for(self, seconds: float) -> bool:
        """Tell whether it waits and has done so for longer, whatever it tried in between."""
        since = self.waits_since
        return self.waits and since is not None and time.monotonic() - since > seconds

    def still_ours(self, record: Record) -> bool:
        """See `Turn`."""
        return self._members.still_ours(record)

    def bury(self, record: Record, error: BaseException, delivery: Delivery | None) -> None:
        """See `Turn`."""
        self._burial.write(record, error, delivery)

    def _look(self) -> bool:
        self.asked_at = time.monotonic()
        return self._leaving.begun


class Batch:
    """The turns of all lanes at one batch."""

    def __init__(self, turns: Sequence[LaneTurn]) -> None:
        self._turns = turns

    def done(self, seconds: float) -> bool:
        """Tell whether all lanes are done, after waiting for them for at most `seconds`.

        Raises what a lane has raised; `WorkerStopping` only when all have ended.
        """
        # Not for those that have ended: one that has raised would end each wait at once.
        futures.wait([turn.outcome for turn in self._at_work()], seconds, futures.FIRST_EXCEPTION)
        at_work = [turn.outcome for turn in self._at_work()]
        ended = [turn.outcome for turn in self._turns if turn.outcome not in at_work]
        raised = [error for outcome in ended if (error := outcome.exception())]
        failures = [error for error in raised if not isinstance(error, WorkerStopping)]
        if failures:
            # The others have been told to stop. One of them that hangs must not hide this failure.
            futures.wait(at_work, PATIENCE_SECONDS)
            raise failures[0]
        if at_work:
            return False
        if raised:
            raise raised[0]
        return True

    def all_asked_since(self, moment: float) -> bool:
        """Tell whether each lane that is not done has given a sign of life since `moment`
        (monotonic seconds).
        """
        return all(turn.asked_at >= moment for turn in self._at_work())

    def some_wait(self) -> bool:
        """Tell whether a lane waits for better times rather than works."""
        return any(turn.waits for turn in self._at_work())

    def some_wait_for(self, seconds: float) -> bool:
        """Tell whether a lane waits and has done so for longer, whatever it tried in between."""
        return any(turn.waits_for(seconds) for turn in self._at_work())

    def _at_work(self) -> list[LaneTurn]:
        return [turn for turn in self._turns if not turn.outcome.done()]


class Lanes:
    """`count` threads that do `work`.

    After one has failed, all are asked to leave and take nothing more.
    """

    def __init__(self, count: int, work: Work, burial: Burial, leaving: Leaving) -> None:
        self._burial = burial
        self._leaving = leaving
        self._lanes = [_Lane(number, work, leaving) for number in range(count)]

    def start(self, records: Sequence[Record], members: Membership) -> Batch:
        """Have the lanes process `records`, which belong to a member of the group as long as
        `members` says so.
        """
        shares = split(records, self._lanes_for(len(records)))
        turns = [LaneTurn(share, members, self._burial, self._leaving) for share in shares]
        for lane, turn in zip(self._lanes, turns, strict=False):
            lane.take(turn)
        return Batch(turns)

    def process(
        self, records: Sequence[Record], members: Membership, patience: float = math.inf
    ) -> None:
        """Return when all lanes are done, where there is no place in a group to keep.

        Raises what a lane raises, and `ServerAway` when one waits for longer than `patience`
        seconds.
        """
        batch = self.start(records, members)
        while not batch.done(LOOK_SECONDS):
            if batch.some_wait_for(patience):
                self._leaving.begin("a server is away")
                raise ServerAway("PostgreSQL or Kafka")

    def _lanes_for(self, events: int) -> int:
        return max(1, min(len(self._lanes), events // EVENTS_WORTH_A_LANE))


class _Lane:
    """One thread.

    A daemon: Python would wait at its exit for any other, for ever for one that hangs.
    """

    def __init__(self, number: int, work: Work, leaving: Leaving) -> None:
        self._work = work
        self._leaving = leaving
        self._turns: SimpleQueue[tuple[LaneTurn, Context]] = SimpleQueue()
        threading.Thread(target=self._run, name=f"lane-{number}", daemon=True).start()

    def take(self, turn: LaneTurn) -> None:
        # In a copy of the context, what is bound to the log or the trace of the batch holds in each
        # lane too.
        self._turns.put((turn, copy_context()))

    def _run(self) -> None:
        while True:
            turn, context = self._turns.get()
            context.run(self._process, turn)

    def _process(self, turn: LaneTurn) -> None:
        try:
            self._try(turn)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for the outcome
            # The other lanes stop at their next question, and no offset of this batch is committed.
            self._leaving.begin(type(error).__name__)
            turn.outcome.set_exception(error)
        else:
            turn.outcome.set_result(None)

    def _try(self, turn: LaneTurn) -> None:
        try:
            self._work.process(turn.records, turn)
        finally:
            # Back to the pool, which checks it before its next use: an idle lane holds none.
            connection.close()


def split(records: Iterable[Record], count: int) -> list[list[Record]]:
    """Return at most `count` shares of `records`, about equally long; those of a key are in one, in
    order.
    """
    shares: list[list[Record]] = [[] for _ in range(count)]
    share_of: dict[bytes | None, list[Record]] = {}
    for record in records:
        share = share_of.get(record.key)
        if share is None:
            # The shortest so far, not one by hash: that may put the few busy keys into the same
            # lane.
            share = share_of[record.key] = min(shares, key=len)
        share.append(record)
    return [share for share in shares if share]
