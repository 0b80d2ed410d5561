"""The slowest event of each minute of the last hour, kept in a worker's memory for its
heartbeat.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

from eventbus.record import Delivery

MINUTES = 60
SHOWN = 10


class Slowest:
    """At most `MINUTES` events.

    The worker notes them, its heartbeat reads them in another thread.
    """

    def __init__(self) -> None:
        self._by_minute: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def note(self, deliveries: Sequence[Delivery]) -> None:
        """Look at events that have just got done together, at least one: the first taken was the
        slowest of them.
        """
        slowest = min(deliveries, key=lambda delivery: delivery.taken_at)
        seconds = time.monotonic() - slowest.taken_at
        minute = int(time.time() // 60)
        with self._lock:
            known = self._by_minute.get(minute)
            if known is None or seconds > known["seconds"]:
                self._by_minute[minute] = {
                    "event_id": str(slowest.event.event_id),
                    "type": slowest.event.type,
                    "seconds": seconds,
                    "batch": len(deliveries),
                    "retries": slowest.attempts,
                    "done_at": time.time(),
                }
            self._by_minute = {
                kept: event for kept, event in self._by_minute.items() if kept > minute - MINUTES
            }

    def top(self) -> list[dict[str, Any]]:
        """Return the `SHOWN` slowest that are no older than an hour, slowest first."""
        oldest = time.time() - MINUTES * 60
        with self._lock:
            fresh = [event for event in self._by_minute.values() if event["done_at"] >= oldest]
        return sorted(fresh, key=lambda event: -event["seconds"])[:SHOWN]
