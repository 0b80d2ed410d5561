"""Two cells on the servers of the tests: `a` is the database that every test has, `b` another one.

Each has a Valkey of its own.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.core.cache import caches
from django.db import connection, connections
from pytest_django import DjangoDbBlocker, Settings

from eventbus import cellmap, cells, identity
from eventbus.cells import Cell
from eventbus.models import CellIdentity, ConsumerOffset
from tests.cells.maps import ALIAS, THIRD, manage, map_of
from tests.cells.split import ALL, NONE, MapFile, Split, close
from tests.feeds.valkeys import Server


@pytest.fixture(scope="package")
def two_servers(
    django_db_setup: None,
    django_db_blocker: DjangoDbBlocker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Make the PostgreSQL and the Valkey of b; return the map of both cells."""
    with (
        django_db_blocker.unblock(),
        a_valkey(tmp_path_factory) as redis,
        a_database(ALIAS, redis) as name,
    ):
        the_map = map_of(name, redis)
        migrate("b", the_map)
        yield the_map


@pytest.fixture(scope="package")
def third_database(
    two_servers: str,
    django_db_blocker: DjangoDbBlocker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Make an empty database and the Valkey of a third cell, c, which serves nobody and holds
    everybody; return the map of all.
    """
    document = json.loads(two_servers)
    with (
        django_db_blocker.unblock(),
        a_valkey(tmp_path_factory) as redis,
        a_database(THIRD, redis) as name,
    ):
        database = f"{document['cells']['b']['database'].rpartition('/')[0]}/{name}"
        c = {"database": database, "redis": redis, "slots": NONE, "holds": ALL}
        document["cells"]["c"] = c
        the_map = json.dumps(document)
        migrate("c", the_map)
        yield the_map


@contextmanager
def a_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a Valkey of a cell's own; return its address."""
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield f"redis://127.0.0.1:{server.port}"
    server.remove()


def migrate(cell: str, the_map: str) -> None:
    done = manage("migrate", "--cell", cell, FEED_CELLS=the_map)
    assert done.returncode == 0, done.stderr


@contextmanager
def a_database(alias: str, redis: str) -> Iterator[str]:
    """Make an empty database beside that of the tests, which Django knows by that alias as it does
    that Redis; return its name.
    """
    name = f"{connection.settings_dict['NAME']}_{alias}"
    with connection.cursor() as cursor:
        cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        cursor.execute(f'CREATE DATABASE "{name}"')
    connections.settings[alias] = copy.deepcopy(connection.settings_dict) | {"NAME": name}
    caches.settings[alias] = caches.settings["default"] | {"LOCATION": redis}
    yield name
    close(alias)
    del connections[alias], connections.settings[alias], caches.settings[alias]
    with connection.cursor() as cursor:
        cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def the_map(two_servers: str) -> Iterator[str]:
    """Have this process go by the map; return it."""
    cells.use(cellmap.read(two_servers), "a")
    yield two_servers
    cells.use(cellmap.ONE_CELL, cells.NO_CELL)


@pytest.fixture
def two_cells(the_map: str) -> list[Cell]:
    """Return both cells, whose databases know them; for tests marked with `DATABASES`."""
    for cell in cells.every().values():
        with cells.on(cell):
            identity.claim()
    return list(cells.every().values())


@pytest.fixture
def split(the_map: str, tmp_path: Path, settings: Settings) -> Split:
    made = Split(tmp_path / "cells.json", the_map)
    settings.FEED_CELLS_FILE = made.file
    made.go_by_file()
    CellIdentity.objects.update_or_create(id=1, defaults={"name": "a", "holds": ALL})
    ConsumerOffset.objects.all().delete()  # what `migrate` has put
    return made


@pytest.fixture
def three_cells(the_map: str, third_database: str, tmp_path: Path, settings: Settings) -> MapFile:
    """Have two cells serve, and a third one with nothing in it."""
    made = MapFile(tmp_path / "cells.json", third_database)
    settings.FEED_CELLS_FILE = made.file
    made.go_by_file()
    for cell in cells.every().values():
        with cells.on(cell):
            identity.claim()
    return made
