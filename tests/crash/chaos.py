"""Random crashes and outages under load, then the count: `make chaos` (SEED=, SECONDS=, CELLS=2,
KAFKA=apache).

Prints the seed first and a table last. Exit status: 0 when nothing was lost or doubled, 1 when
something was. The same seed gives the same order of faults; when a load of several clients meets
them, nobody can repeat exactly.
"""

import json
import logging
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import django

from feedsite.embedded import addresses, stack
from feedsite.embedded.kafka import KAFKA
from feedsite.embedded.processes import EmbeddedError
from tests.kafka.apache import ApacheKafka, CannotRun

SECONDS = 300.0
LOGS = Path(__file__).resolve().parents[2] / ".local" / "chaos"


def main() -> int:
    # A polite kill then ends like Ctrl-C, which leaves no server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        seed = int(os.environ.get("SEED") or random.randrange(10**6))
        seconds = float(os.environ.get("SECONDS") or SECONDS)
    except ValueError as error:
        print(f"error: SEED and SECONDS must be numbers: {error}", file=sys.stderr)
        return 2
    number_of_cells = os.environ.get("CELLS") or "1"
    if number_of_cells not in ("1", "2"):
        print("error: CELLS must be 1 or 2", file=sys.stderr)
        return 2
    print(f"SEED={seed}, logs in {LOGS}", flush=True)
    try:
        apache = os.environ.get("KAFKA") == "apache"
        with servers(apache=apache, two_cells=number_of_cells == "2") as broker:
            django.setup()
            logging.disable()  # of this process, whose clients are cut off all the time
            from tests.crash import storm  # its models need Django

            return storm.run(_empty(LOGS), broker, seed, seconds)
    except (EmbeddedError, CannotRun) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


@contextmanager
def servers(*, apache: bool, two_cells: bool = False) -> Iterator[ApacheKafka | None]:
    """Run servers of our own, PostgreSQL as durable as in production; yield the broker that can be
    restarted.
    """
    directory = Path(tempfile.mkdtemp(prefix="feed-chaos-"))
    for variable in ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS"):
        os.environ.pop(variable, None)
    os.environ.update(
        DJANGO_SETTINGS_MODULE="feedsite.settings",
        FEED_DATA_DIR=str(directory),
        FEED_EMBEDDED_FSYNC="on",
    )
    os.environ.setdefault("LOG_LEVEL", "WARNING")
    # Small, so that partitions of the feeds are started and dropped in the middle of it all.
    os.environ.update(FEED_PARTITION_ROWS="1000", FEED_PARTITIONS="4")
    # Short sessions, so that the group notices a killed worker soon.
    os.environ["KAFKA_SESSION_TIMEOUT_MS"] = "4000" if apache else "2000"
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, directory, ignore_errors=True)
        broker = None
        if apache:
            broker = ApacheKafka()
            ending.callback(broker.remove)
            broker.start()
            os.environ.update(KAFKA_BOOTSTRAP_SERVERS=broker.address, KAFKA_FETCH_WAIT_MS="10")
        ending.callback(stack.remove, directory, say=lambda line: None)
        stack.start(directory, say=lambda line: None)
        if two_cells:
            _add_a_cell(directory, ending)
        yield broker


def _add_a_cell(directory: Path, ending: ExitStack) -> None:
    """Divide the readers over the servers that run, cell a, and a PostgreSQL and a Valkey more."""
    first = addresses(directory)
    # Given from outside, it is not started once more; the same environment starts killed servers.
    os.environ.setdefault(KAFKA.variable, first.get(KAFKA.variable, ""))
    of_b = directory / "cell-b"
    ending.callback(stack.remove, of_b, say=lambda line: None)
    stack.start(of_b, say=lambda line: None)
    places = {"a": (first, "0-511"), "b": (addresses(of_b), "512-1023")}
    cells = {
        name: {"database": of["DATABASE_URL"], "redis": of["REDIS_URL"], "slots": slots}
        for name, (of, slots) in places.items()
    }
    os.environ.update(
        FEED_CELLS=json.dumps({"ids": "a", "cells": cells}),
        # What a process makes for itself only where it uses the embedded PostgreSQL.
        DJANGO_SECRET_KEY=secrets.token_hex(32),
        JWT_SIGNING_KEY=secrets.token_hex(32),
        DJANGO_HTTPS="false",
    )


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


if __name__ == "__main__":
    sys.exit(main())
