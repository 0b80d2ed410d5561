"""One log of several processes, each line after the name of the one that wrote it."""

import os
import re
import shutil
import threading
from contextlib import suppress
from typing import TextIO

COLOURS = {"demo": 35, "api": 36, "run_fanout": 32, "run_dlq": 33}
NAME_WIDTH = max(map(len, COLOURS))
_ERASE_LINE = "\r\x1b[2K"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class Log:
    """Writes whole lines, in colour on a terminal; safe for threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")
        self._status = ""
        self._lock = threading.Lock()

    def line(self, source: str, text: str) -> None:
        """Write one line of `source`."""
        prefix = f"{source:<{NAME_WIDTH}} |"
        if self._coloured:
            prefix = f"\x1b[{COLOURS.get(source, 0)}m{prefix}\x1b[0m"
        self.block(f"{prefix} {text}\n")

    def say(self, text: str) -> None:
        """Write one line of the demo itself."""
        self.line("demo", text)

    def block(self, text: str) -> None:
        """Write lines that belong together.

        A terminal that is gone must not keep the demo from stopping.
        """
        if not self._coloured:
            text = _ESCAPES.sub("", text)
        with self._lock, suppress(OSError):
            self._stream.write(_ERASE_LINE + text + self._status if self._status else text)
            self._stream.flush()

    def status(self, text: str) -> None:
        """Show what changes all the time: as the last line of a terminal, elsewhere as a line in
        the log.
        """
        if not self._terminal:
            self.say(text)
            return
        with self._lock, suppress(OSError):
            self._status = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write(_ERASE_LINE + self._status)
            self._stream.flush()

    def end_status(self) -> None:
        """Show no status any more."""
        if self._status:
            self.status("")
