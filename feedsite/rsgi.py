"""The application served by granian, in each of its worker processes."""

import asyncio
import signal
import sys
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from feedsite.wsgi import application as handler  # first, for it sets Django up

# isort: split
from django.conf import settings
from granian import _signals
from granian._granian import RSGIWorker
from granian.server import mp

from eventbus.database import pool
from feedsite.front.application import Application
from feedsite.front.listener import end_unread_connections

try:
    pool.require("api")
except ImproperlyConfigured as error:
    sys.exit(f"error: {error}")
application = Application(handler, is_hot=settings.API_FRONT)


def _worker(worker_id: int, listener: tuple[Any, Any], *arguments: Any) -> Any:
    """Make granian's worker, on a listening socket whose connections end when nobody reads from
    them.
    """
    spec, holder = listener
    if holder is None:
        holder = spec.build()
    end_unread_connections(holder.get_fd())
    return RSGIWorker(worker_id, (None, holder), *arguments)


mp.RSGIWorker = _worker  # type: ignore[attr-defined, assignment]

set_loop_signals = _signals.set_loop_signals


def _set_loop_signals(loop: asyncio.AbstractEventLoop) -> Any:
    """Do as granian does, and have the streams end: it waits for the last request before it tells
    the application.
    """
    shutdown = set_loop_signals(loop)  # type: ignore[no-untyped-call]

    def end() -> None:
        application.leave()
        shutdown.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    return shutdown


_signals.set_loop_signals = _set_loop_signals
