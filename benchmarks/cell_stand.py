"""Two cells beside the one of the stand: a PostgreSQL and a Valkey each, and the same Kafka."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from django.conf import settings

from benchmarks import workload
from benchmarks.stand import ROOT, Stand
from benchmarks.tables import progress
from benchmarks.workload import Network
from feedsite import embedded
from feedsite.embedded import stack

SLOTS = {"a": "0-511", "b": "512-1023"}


class Cells:
    """The two cells; `environment` makes a process one that knows them."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self.directories = directories
        places = {name: embedded.addresses(where) for name, where in directories.items()}
        self.databases = {name: place["DATABASE_URL"] for name, place in places.items()}
        self.environment = {
            "FEED_CELLS": json.dumps({"ids": "a", "cells": _described(places)}),
            # What a process finds in the stand's directory only if it uses the stand's PostgreSQL.
            "DJANGO_SECRET_KEY": settings.SECRET_KEY,
            "JWT_SIGNING_KEY": settings.JWT_SIGNING_KEY,
            "DJANGO_HTTPS": "false",
        }

    def load(self, network: Network) -> None:
        """Make the network the only content of both, as `workload.load` does."""
        for url in self.databases.values():
            _execute(url, f"TRUNCATE {workload.TABLES}")
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
            file.write("follower,followee\n")
            file.writelines(f"{follower},{followee}\n" for follower, followee in network.follows)
            file.flush()
            self.manage("import_follows", file.name)
        for url in self.databases.values():
            _execute(url, f"VACUUM ANALYZE {workload.TABLES}")

    def manage(self, *arguments: str) -> None:
        """Run a command of `manage.py`, which is about both cells."""
        subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            check=True,
        )


@contextmanager
def started(stand: Stand) -> Iterator[Cells]:
    """Start the servers of both cells and make their tables; remove them at the end."""
    directories = {}
    with ExitStack() as ending:
        for name in SLOTS:
            progress(f"starting the servers of cell {name}")
            directory = stand.directory / f"cell-{name}"
            ending.callback(stack.remove, directory, lambda line: None)
            _start_without_kafka(directory)
            directories[name] = directory
        cells = Cells(directories)
        cells.manage("migrate", "--noinput")
        yield cells


def _start_without_kafka(directory: Path) -> None:
    """A server whose variable is set is somebody else's, and not started."""
    os.environ["KAFKA_BOOTSTRAP_SERVERS"] = settings.KAFKA_BOOTSTRAP_SERVERS
    try:
        stack.start(directory, lambda line: None)
    finally:
        del os.environ["KAFKA_BOOTSTRAP_SERVERS"]


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def _described(places: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {
        name: {
            "database": places[name]["DATABASE_URL"],
            "redis": places[name]["REDIS_URL"],
            "slots": slots,
        }
        for name, slots in SLOTS.items()
    }
