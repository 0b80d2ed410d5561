"""The map of two cells, and commands that go by it."""

import json
import subprocess
import sys
from typing import Any

from django.conf import settings

from tests.e2e.system import environment

ALIAS, THIRD = "cell_b", "cell_c"
# Of the marker `django_db`, for tests of both cells.
DATABASES = ["default", ALIAS]
A_SLOTS, B_SLOTS = "0-511", "512-1023"


def map_of(b_database: str, b_redis: str, **more_of_b: Any) -> str:
    """Return the map in which a is the database of the tests, b that of this name beside it."""
    a_url = environment()["DATABASE_URL"]
    b_url = f"{a_url.rpartition('/')[0]}/{b_database}"
    a_redis = settings.CACHES["default"]["LOCATION"]
    a = {"database": a_url, "redis": a_redis, "slots": A_SLOTS}
    b = {"database": b_url, "redis": b_redis, "slots": B_SLOTS, **more_of_b}
    return json.dumps({"ids": "a", "cells": {"a": a, "b": b}})


def manage(
    *arguments: str, stdin: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of `manage.py` to its end, whatever that is."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env=environment() | variables,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
