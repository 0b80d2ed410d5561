"""Ending a worker: asked for by a signal or a failure, obeyed between two transactions, enforced by
a watchdog.
"""

import os
import threading
import time
from queue import SimpleQueue

EXIT_STUCK = 4


class Leaving:
    """Whether this worker is to leave. All its threads look at one."""

    def __init__(self) -> None:
        self._reason = ""
        self._told: SimpleQueue[None] = SimpleQueue()

    @property
    def begun(self) -> bool:
        return bool(self._reason)

    @property
    def reason(self) -> str:
        """Why: a signal or a failure, by its name."""
        return self._reason

    def begin(self, reason: str) -> None:
        """Ask everybody to leave.

        A signal handler may call it: it takes no lock that the loop might hold.
        """
        self._reason = self._reason or reason
        # The one queue of Python that may be filled while the same thread is in the middle of it.
        self._told.put(None)

    def watch(self, seconds: float) -> None:
        """Have the process end `seconds` after `begin`, whatever hangs by then."""
        # Started beforehand: a signal handler must not start a thread.
        threading.Thread(
            target=self._end_late, args=[seconds], name="watchdog", daemon=True
        ).start()

    def _end_late(self, seconds: float) -> None:
        self._told.get()
        time.sleep(seconds)
        os._exit(EXIT_STUCK)
