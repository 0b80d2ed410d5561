"""Two cells for the API of this process: `a` on the servers of the tests, `b` on servers of its own,
which a test may freeze or kill.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from django.conf import settings
from django.core.cache import caches
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from eventbus import breaker, cellmap, cells
from feedsite import settings as made  # how a cell of the map is connected to
from feedsite.embedded import stack, state
from tests.e2e.system import environment

ALIAS_B = "cell_b"
HALVES = {"a": "0-511", "b": "512-1023"}
MIDDLEWARE = "feedsite.middleware.CellOfRequest"
POSTGRESQL, REDIS = "DATABASE_URL", "REDIS_URL"


def readers_of(name: str) -> list[int]:
    """Return some users whom the cell serves, in order."""
    return [user for user in range(1, 200) if cells.of(user).name == name]


class TwoCells:
    """The map in its file, and the servers of `b`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.file = directory / "cells.json"

    def start(self) -> None:
        """Start the servers of `b`, and write the map."""
        self.revive()
        found = state.read(self._directory)
        ours = environment()
        self.addresses = {
            "a": (ours[POSTGRESQL], ours[REDIS]),
            "b": (found[POSTGRESQL].url, found[REDIS].url),
        }
        self.write(HALVES)

    def revive(self) -> None:
        """Start what was killed, where it was."""
        kafka = {"KAFKA_BOOTSTRAP_SERVERS": settings.KAFKA_BOOTSTRAP_SERVERS}
        with mock.patch.dict(os.environ, kafka):  # that of the tests, which is left alone
            stack.start(self._directory, say=lambda _line: None)
        self._pids = {name: record.pid for name, record in state.read(self._directory).items()}

    def write(self, slots: dict[str, str], **holds: str) -> None:
        """Write a map in which the cells serve and hold these slots."""
        described: dict[str, Any] = {}
        for name, (database, redis) in self.addresses.items():
            described[name] = {"database": database, "redis": redis, "slots": slots[name]}
            if name in holds:
                described[name]["holds"] = holds[name]
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps({"ids": "a", "cells": described}))
        draft.rename(self.file)

    def send(self, number: signal.Signals, *servers: str) -> None:
        """Send a signal to all processes of servers of `b`."""
        for server in servers or (POSTGRESQL, REDIS):
            main = psutil.Process(self._pids[server])
            for process in (main, *main.children(recursive=True)):
                process.send_signal(number)

    def remove(self) -> None:
        stack.remove(self._directory, say=lambda _line: None)


@contextmanager
def two_cells(directory: Path) -> Iterator[TwoCells]:
    """Have this process go by a map of two cells, as one that was started with it."""
    made_cells = TwoCells(directory)
    made_cells.start()
    place = cellmap.read(str(made_cells.file))
    database, redis = made_cells.addresses["b"]
    connections.settings[ALIAS_B] = connections.configure_settings(
        {"default": {}, ALIAS_B: made._database(database, "cell b")}
    )[ALIAS_B]
    caches.settings[ALIAS_B] = made._cache(redis)
    changed = {
        "FEED_CELLS": place,
        "FEED_CELLS_FILE": made_cells.file,
        "FEED_CELL": "a",
        "MIDDLEWARE": [MIDDLEWARE, *settings.MIDDLEWARE],
        "DATABASE_ANSWER_SECONDS": 2.0,  # so long does a test wait for who stands still
    }
    try:
        with override_settings(**changed):
            cells.use_settings()
            with cells.on(cells.every()["b"]):
                call_command("migrate", database=ALIAS_B, verbosity=0)
            yield made_cells
    finally:
        cells.use_settings()
        connections[ALIAS_B].close()
        connections[ALIAS_B].close_pool()  # type: ignore[attr-defined]
        del connections[ALIAS_B], connections.settings[ALIAS_B], caches.settings[ALIAS_B]
        made_cells.send(signal.SIGCONT)
        made_cells.remove()


def close_breakers() -> None:
    """Have every server be tried at once."""
    for cell in cells.every().values():
        for one in breaker.of(cell):
            one.succeeded()
