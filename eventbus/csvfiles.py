"""CSV files for the importers."""

import gzip
import io
from pathlib import Path
from typing import TextIO


class BadLine(ValueError):
    """A line of the file cannot be used; the message names it."""


def open_csv(path: Path) -> TextIO:
    """Open a CSV file, gzipped or not, as UTF-8 text. Raises `OSError`."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")
