"""Writing the map of cells: how readers are moved from one cell to another.

What the file says besides, such as addresses from variables, stays as it is written.
"""

import fcntl
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from eventbus import cellmap
from eventbus.cellmap import CellMap, Slots


class Draft:
    """A map that is to take the place of the one that `FEED_CELLS` names or is."""

    def __init__(self, source: str) -> None:
        self._file = cellmap.file_of(source)
        self._before = _text(self._file, source)
        cellmap.read(self._before)  # or it is refused
        self._document: dict[str, Any] = json.loads(self._before)

    def place(self, name: str, slots: Slots, holds: Slots) -> Self:
        """Have the cell serve and hold these slots."""
        fields = self._document["cells"][name]
        fields["slots"] = cellmap.written(slots)
        fields["holds"] = cellmap.written(holds)
        if slots == holds:
            del fields["holds"]
        return self

    @property
    def text(self) -> str:
        """The new map. It may have passwords in it, if the present one has.

        Raises `ImproperlyConfigured` for one in which slots are missing or twice.
        """
        text = json.dumps(self._document, indent=2) + "\n"
        cellmap.read(text)
        return text

    @property
    def new_map(self) -> CellMap:
        """The new map, as `text` has it."""
        return cellmap.read(self.text)

    def write(self) -> bool:
        """Replace the file, at once and for good; False where the map is in none that can be
        written.

        Raises `ImproperlyConfigured` when somebody else has changed it meanwhile.
        """
        text = self.text
        if self._file is None:
            return False
        try:
            with self._file.open() as present:
                # Of two who write at the same time, the later one finds another file in its place.
                fcntl.flock(present, fcntl.LOCK_EX)
                if _text(self._file, "") != self._before:
                    cellmap.refuse(f"{self._file} has changed meanwhile: run the command again")
                _replace(self._file, text)
        except OSError:
            return False
        return True


def _text(file: Path | None, source: str) -> str:
    if file is None:
        return source
    try:
        return file.read_text()
    except (OSError, ValueError):
        cellmap.refuse(f"{file} cannot be read")


def _replace(file: Path, text: str) -> None:
    """Have the file be the new one or the old one, whenever the machine stops."""
    target = file.resolve()  # a link goes on being one
    present = target.stat()
    if not os.access(target, os.W_OK):
        raise PermissionError
    descriptor, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w") as out:
            # Who could read the one before can read this one, whoever runs the command.
            os.fchown(out.fileno(), present.st_uid, present.st_gid)
            os.fchmod(out.fileno(), present.st_mode & 0o7777)
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(draft).replace(target)
    except OSError:
        with suppress(OSError):
            Path(draft).unlink()
        raise
