"""Ctrl-C and its like: the first asks the demo to stop, a second one not to wait for anything."""

import signal
from types import FrameType
from typing import Self

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Stopping(Exception):
    """Someone asked the demo to stop."""


class Signals:
    """Counts signals while its `with` block runs; the main thread looks at them when it suits
    it.
    """

    def __init__(self) -> None:
        self._received = 0

    def __enter__(self) -> Self:
        for number in SIGNALS:
            signal.signal(number, self._count)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def is_impatient(self) -> bool:
        """Tell whether a second signal came."""
        return self._received > 1

    def check(self) -> None:
        """Raise `Stopping` once a signal came."""
        if self._received:
            raise Stopping

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        # Nothing else: whatever the signal interrupts may hold the lock of the log.
        self._received += 1


def hold() -> None:
    """Keep signals until the program that replaces this one is ready for them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
