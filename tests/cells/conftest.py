"""Two cells on the servers of the tests: `a` is the database that every test has, `b` another one.

Each has a Valkey of its own.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.cache import caches
from django.db import connection, connections
from pytest_django import DjangoDbBlocker, Settings

from eventbus import cellmap, cells, identity
from eventbus.cells import Cell
from eventbus.models import CellIdentity
from tests.cells.maps import ALIAS, manage, map_of
from tests.cells.split import ALL, Split
from tests.feeds.valkeys import Server


@pytest.fixture(scope="package")
def two_servers(
    django_db_setup: None,
    django_db_blocker: DjangoDbBlocker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Make the PostgreSQL and the Valkey of b; return the map of both cells."""
    valkey = Server(tmp_path_factory.mktemp("valkey"))
    with django_db_blocker.unblock():
        name = f"{connection.settings_dict['NAME']}_b"
        with connection.cursor() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            cursor.execute(f'CREATE DATABASE "{name}"')
        the_map = map_of(name, f"redis://127.0.0.1:{valkey.port}")
        done = manage("migrate", "--cell", "b", FEED_CELLS=the_map)
        assert done.returncode == 0, done.stderr
        connections.settings[ALIAS] = copy.deepcopy(connection.settings_dict) | {"NAME": name}
        caches.settings[ALIAS] = caches.settings["default"] | {
            "LOCATION": f"redis://127.0.0.1:{valkey.port}"
        }
        yield the_map
        connections[ALIAS].close()
        connections[ALIAS].close_pool()  # type: ignore[attr-defined]
        del connections[ALIAS], connections.settings[ALIAS], caches.settings[ALIAS]
        with connection.cursor() as cursor:
            cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    valkey.remove()


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
    return made
