"""Runs a manage.py command, or serves the API, that something happens to at a named point, once.

    python -m tests.crash.die_at POINT MARKER_FILE run_fanout
    granian tests.crash.die_at:application        with DIE_AT=POINT and DIE_MARKER=FILE

By default the process kills itself there. AT_POINT=SIGSTOP freezes it until a SIGCONT,
AT_POINT=hang has the call never return. LEAVE_SECONDS shortens what a worker allows itself for
leaving.

The marker file says that it has happened; a process started later passes the point unharmed.
Production code has no hooks for this: the function at the point is wrapped here.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# Point: module, attribute, and whether to die before or after the call.
POINTS = {
    "after poll": ("eventbus.consume.consumer", "EventConsumer._take_batch", "after"),
    "before the database commit": ("eventbus.models", "ProcessedEventQuerySet.record", "after"),
    "after the database commit": ("eventbus.consume.processing", "Processor._transaction", "after"),
    "before cache invalidation": ("feeds.read.pages", "Pages.invalidate", "before"),
    "after cache invalidation": ("feeds.read.pages", "Pages.invalidate", "after"),
    "before PostgreSQL keeps the offset": ("eventbus.consume.offsets", "advance", "before"),
    "before the offset commit": (
        "eventbus.consume.consumer",
        "EventConsumer._commit_offsets",
        "before",
    ),
    "after the offset commit": (
        "eventbus.consume.consumer",
        "EventConsumer._commit_offsets",
        "after",
    ),
    "during assignment": ("eventbus.consume.consumer", "EventConsumer._on_assign", "after"),
    "during revocation": ("eventbus.consume.consumer", "EventConsumer._on_revoke", "before"),
    "before the dead letter is sent": ("eventbus.producer", "publish_record", "before"),
    "after the dead letter is acknowledged": ("eventbus.producer", "publish_record", "after"),
    "while partitions are made": ("feeds.partitions", "make", "after"),
    "while a partition is dropped": ("feeds.partitions", "drop", "before"),
    "before erased posts leave cached pages": ("feeds.erasure", "_void", "before"),
    "before a part of an erasure is noted": ("feeds.erasure", "_advance", "before"),
    "before dead letters are stored": ("eventbus.deadletters.store", "store", "before"),
    "after dead letters are stored": ("eventbus.deadletters.store", "store", "after"),
    "before a replay is marked": ("eventbus.deadletters.replay", "_publish", "after"),
    "before publishing": ("eventbus.producer", "publish_record", "before"),
    "between publish and answer": ("eventbus.producer", "publish_record", "after"),
}


def arm(point: str, marker: Path) -> None:
    """Make it happen to this process at `point` unless `marker` exists; empty results do not count
    as passing it.
    """
    module_name, path, moment = POINTS[point]
    owner: Any = import_module(module_name)
    *classes, name = path.split(".")
    for class_name in classes:
        owner = getattr(owner, class_name)
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            _happen(marker)
        result = original(*args, **kwargs)
        if moment == "after" and result != []:
            _happen(marker)
        return result

    setattr(owner, name, wrapped)


def _happen(marker: Path) -> None:
    if marker.exists():
        return
    marker.touch()
    what = os.environ.get("AT_POINT", "SIGKILL")
    if what == "hang":
        while True:
            time.sleep(1)
    os.kill(os.getpid(), signal.Signals[what])


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    point, marker, *command = sys.argv[1:]
    django = import_module("django")
    django.setup()
    arm(point, Path(marker))
    if "LEAVE_SECONDS" in os.environ:
        import_module("eventbus.worker").LEAVE_SECONDS = float(os.environ["LEAVE_SECONDS"])  # type: ignore[attr-defined]
    import_module("django.core.management").execute_from_command_line(["manage.py", *command])


if __name__ == "__main__":
    main()
elif "DIE_AT" in os.environ:
    application = import_module("feedsite.rsgi").application
    arm(os.environ["DIE_AT"], Path(os.environ["DIE_MARKER"]))
