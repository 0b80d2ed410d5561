"""CSV files for the importers."""

import csv
import gzip
import io
import zlib
from pathlib import Path
from typing import TextIO


class BadLine(ValueError):
    """A line of the file cannot be used; the message names it."""


# What reading a file may raise beside `OSError`: a cut or damaged .gz, other encodings, a field without end.
UNUSABLE = (BadLine, UnicodeDecodeError, EOFError, zlib.error, csv.Error)


def open_csv(path: Path) -> TextIO:
    """Open a CSV file, gzipped or not, as UTF-8 text. Raises `OSError`."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")
