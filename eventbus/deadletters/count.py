"""How many dead letters wait for someone, counted by a thread of its own: however many scrapes ask,
one counts.
"""

import math
import time

from django.db import DatabaseError

from eventbus.background import Repeating
from eventbus.models import DeadLetter

COUNT_SECONDS = 3.0
# An older count says nothing about now.
FRESH_SECONDS = 15.0


class DeadLetterCount:
    """Counts while `counting`; `latest` tells what was found."""

    def __init__(self) -> None:
        self._count = math.nan
        self._counted_at = time.monotonic()

    def counting(self) -> Repeating:
        """Return the context in which the dead letters are counted every few seconds."""
        return Repeating("dlq_size", self.count, pause=COUNT_SECONDS)

    def count(self) -> None:
        """Count, for as long as that takes."""
        try:
            self._count = DeadLetter.objects.unresolved().count()
        except DatabaseError:
            self._count = math.nan
        self._counted_at = time.monotonic()

    def latest(self) -> float:
        """Return the last count at once; NaN without one, such as while PostgreSQL is away."""
        is_fresh = time.monotonic() - self._counted_at <= FRESH_SECONDS
        return self._count if is_fresh else math.nan
