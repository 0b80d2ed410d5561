"""Acting on very many dead letters in parts, each short enough for one request.

A page carries the `Job` from one request to the next, signed, so that nothing is kept between two
requests and an action that was broken off has done what it says, and no more.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Self

from django.core import signing
from django.db.models import Count, Max, Q

from eventbus.models import DeadLetter, DeadLetterQuerySet

PART_SECONDS = 0.4
JOB_SECONDS = 86_400  # for which a page may be left open


@dataclass(slots=True)
class Job:
    """An action on all entries up to `up_to`, those that there were when it was asked for, and how
    far it has come.
    """

    up_to: int
    total: int
    after: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    finished: bool = False
    log_entries: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, found: dict[str, int]) -> Self:
        """Return the job of all that `survey` found."""
        return cls(up_to=found["up_to"] or 0, total=found["count"])

    @classmethod
    def load(cls, text: str, owner: str) -> Self:
        """Return the job that `dump` made for the same owner. Raises `signing.BadSignature`."""
        return cls(**signing.loads(text, salt=_salt(owner), max_age=JOB_SECONDS))

    def dump(self, owner: str) -> str:
        return signing.dumps(asdict(self), salt=_salt(owner))

    @property
    def seen(self) -> int:
        return self.done + self.skipped + self.failed

    def batches(self, entries: DeadLetterQuerySet, size: int) -> Iterator[list[int]]:
        """Yield the ids of what comes next, `size` at a time, until nothing does or the time of a
        request is over.
        """
        deadline = time.monotonic() + PART_SECONDS
        while not self.finished:
            following = entries.filter(id__gt=self.after, id__lte=self.up_to).order_by("id")
            ids = list(following.values_list("id", flat=True)[:size])
            if ids:
                self.after = ids[-1]
                yield ids
            self.finished = len(ids) < size
            if time.monotonic() >= deadline:
                return


def survey(entries: DeadLetterQuerySet) -> dict[str, int]:
    """Return the `count` of entries and the highest id `up_to` of them, how many are parked, and
    how many were replayed without an outcome so far (`overdue`), all in one look.
    """
    return entries.aggregate(
        count=Count("id"),
        up_to=Max("id"),
        parked=Count("id", filter=Q(state=DeadLetter.State.PARKED)),
        overdue=Count("id", filter=Q(state=DeadLetter.State.REPLAYED)),
    )


def _salt(owner: str) -> str:
    return f"dead-letters:{owner}"
