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

from eventbus.database import pool
from feedsite.front.application import Application

try:
    pool.require("api")
except ImproperlyConfigured as error:
    sys.exit(f"error: {error}")
application = Application(handler, is_hot=settings.API_FRONT)

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
