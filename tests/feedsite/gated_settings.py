"""The settings, with a gate before PostgreSQL, for processes started with `DJANGO_SETTINGS_MODULE`
set to this.

A thread that asks PostgreSQL waits, its connection in hand, while the file `closed` in the
directory `GATE` matches its name. `report` there tells who waits, who ever asked, and what the pool
says of itself.
"""

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import TypeVar

from django.apps import apps
from django.db import connection
from psycopg.abc import PQGen

from feedsite.postgresql.connection import Connection
from feedsite.settings import *  # noqa: F403
from feedsite.settings import DATABASES

T = TypeVar("T")

DIRECTORY = Path(os.environ["GATE"])
LOOK_SECONDS = 0.02

_waiting: set[str] = set()
_asked: set[str] = set()


class GatedConnection(Connection):
    """A connection on which each question may have to wait at the gate."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        name = threading.current_thread().name
        if not name.startswith("pool-"):  # the pool's own threads, which make connections
            _pass_gate(name)
        return super().wait(gen, interval, timeout)


def _pass_gate(name: str) -> None:
    _asked.add(name)
    _waiting.add(name)
    while re.fullmatch(_closed_for(), name):
        time.sleep(LOOK_SECONDS)
    _waiting.discard(name)


def _closed_for() -> str:
    try:
        return (DIRECTORY / "closed").read_text()
    except FileNotFoundError:
        return ""


def _report() -> None:
    while not apps.ready:
        time.sleep(LOOK_SECONDS)
    while True:
        time.sleep(LOOK_SECONDS)
        _hurry_the_lease()
        pool = connection.pool.get_stats()  # type: ignore[attr-defined]
        told = {
            "waiting": sorted(_waiting),
            "asked": sorted(_asked),
            "held": pool.get("pool_size", 0) - pool.get("pool_available", 0),
            "taken": pool.get("requests_num", 0),
            "refused": pool.get("requests_errors", 0),
        }
        draft = DIRECTORY / "report.new"
        draft.write_text(json.dumps(told))
        draft.rename(DIRECTORY / "report")


def _hurry_the_lease() -> None:
    """Have the thread that renews the lease come to the gate at once: its turns are up to minutes
    apart.
    """
    from eventbus.ids import node_lease  # not before Django is up

    keeper = node_lease._keeper
    if keeper is not None and re.fullmatch(_closed_for(), "snowflake-lease"):
        keeper.renew_soon()


DATABASES["default"]["OPTIONS"]["pool"]["connection_class"] = GatedConnection
threading.Thread(target=_report, daemon=True).start()
