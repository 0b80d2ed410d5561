"""Waits before an API process starts, for as long as migrations are missing: `python -m
feedsite.wait_for_migrations`.

A PostgreSQL that cannot be reached is waited for only a little: an outage must not hold back an API
process, which takes up its work by itself once the server is back. A worker has nothing to do
without PostgreSQL and must never work on tables of another version, so the pods of workers wait for
both as long as it takes.
"""

import os
import sys
import time

import django
import structlog
from django.conf import settings
from django.db import OperationalError, connections
from django.db.migrations.executor import MigrationExecutor

from eventbus import cells
from eventbus.cells import Cell
from eventbus.database.deadline import answer_within

UNREACHABLE_SECONDS = 15.0
PAUSE_SECONDS = 2.0
ANSWER_SECONDS = 10.0

log = structlog.get_logger(__name__)


def wait(unreachable_seconds: float) -> None:
    """Return once all migrations are applied in each cell that this process is of, or its
    PostgreSQL could not be reached for so long.
    """
    own_alone = settings.ENV["FEED_CELL"]
    for cell in [cells.own()] if own_alone else cells.every().values():
        _wait_for(cell, unreachable_seconds)


def _wait_for(cell: Cell, unreachable_seconds: float) -> None:
    reached_at = time.monotonic()
    while True:
        try:
            missing = _missing(cell)
        except OperationalError as error:
            if time.monotonic() - reached_at >= unreachable_seconds:
                log.warning("migrations_not_looked_at", error=str(error))
                return
        else:
            if not missing:
                log.info("migrations_applied")
                return
            log.info("migrations_missing", count=missing)
            reached_at = time.monotonic()
        time.sleep(PAUSE_SECONDS)


def _missing(cell: Cell) -> int:
    connection = connections[cell.alias]
    try:
        with answer_within(ANSWER_SECONDS):
            executor = MigrationExecutor(connection)
            return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    finally:
        connection.close()


def main() -> None:
    """Wait; an argument replaces the seconds for which an unreachable PostgreSQL is waited for."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    django.setup()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else UNREACHABLE_SECONDS
    wait(seconds)


if __name__ == "__main__":
    main()
