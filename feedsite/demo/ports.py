"""Where the demo's processes listen."""

import os
import socket
from typing import NamedTuple

from django.core.management.base import CommandError

TRIED = 100


class Places(NamedTuple):
    """The port of the API and the metrics ports of the workers."""

    api: int
    run_fanout: int
    run_dlq: int


def choose() -> Places:
    """Return free ports: from `PORT` (8000) upwards. Raises `CommandError`."""
    wanted = os.environ.get("PORT") or "8000"
    if not wanted.isdecimal() or not 1 <= int(wanted) <= 65_535:
        raise CommandError(f"PORT must be a number of 1 to 65535, not {wanted!r}.")
    api = _next_free(int(wanted))
    run_fanout = _next_free(api + 1)
    return Places(api, run_fanout, _next_free(run_fanout + 1))


def _next_free(first: int) -> int:
    for port in range(first, min(first + TRIED, 65_536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                # On every interface, as the metrics listen.
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise CommandError(f"No port of {first} to {first + TRIED - 1} is free.")
