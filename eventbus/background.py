"""Work beside the loop of a worker: something done again and again in a thread of its own."""

import threading
from collections.abc import Callable
from typing import Self

import structlog
from django import db

from eventbus.database.current import connection

log = structlog.get_logger(__name__)


class Repeating:
    """Calls `act` until the context ends, and then `at_end`, all in a thread of its own.

    `act` gets its turns `pause` seconds apart, or after so many seconds as it returns; the first
    after `first_pause`. What either raises is logged as `<name>_failed`, and `act` gets its next
    turn. Between turns the thread holds no connection to PostgreSQL.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[], float | None],
        *,
        pause: float,
        first_pause: float = 0.0,
        at_end: Callable[[], object] | None = None,
        join_seconds: float = 5.0,
    ) -> None:
        self._name = name
        self._act = act
        self._pause = pause
        self._first_pause = first_pause
        self._at_end = at_end
        self._join_seconds = join_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        # What takes longer is cut off by the end of the process.
        self._thread.join(self._join_seconds)

    def _run(self) -> None:
        pause = self._first_pause
        while not self._stopping.wait(pause):
            pause = self._try(self._act) or self._pause
        if self._at_end is not None:
            self._try(self._at_end)

    def _try(self, act: Callable[[], object]) -> float | None:
        try:
            asked = act()
            return asked if isinstance(asked, float) else None
        except db.Error as error:
            log.warning(f"{self._name}_failed", error=str(error))
        except Exception:
            log.exception(f"{self._name}_failed")
        finally:
            connection.close()
        return None
