"""CSV files for the importers: read strictly, for what is guessed in bulk is found out too late."""

import csv
import gzip
import io
import shutil
import tempfile
import zlib
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self, TextIO, cast

from django.core.management.base import CommandError

GZIP = b"\x1f\x8b"
MAX_LINE_CHARS = 1_000_000
QUOTE_TOO_LATE = "a quote is opened here, and what closes it has text after it"
# What csv makes of a quote that is never closed depends on how much of the file is left.
FIELD_TOO_LONG = f"field larger than field limit ({csv.field_size_limit()})"
MEANINGS = {
    FIELD_TOO_LONG: f"{FIELD_TOO_LONG}: is a quote opened here and never closed?",
    "unexpected end of data": "a quote is opened here and never closed",
    "',' expected after '\"'": QUOTE_TOO_LATE,
}


class BadLine(ValueError):
    """A line of the file cannot be used; the message names it."""


# What reading a file may raise beside `OSError`: a cut or damaged .gz.
UNUSABLE = (BadLine, EOFError, zlib.error)


class CsvRow(NamedTuple):
    """A row: the number of the line it begins in, its fields, and the text it was read from."""

    line: int
    fields: Sequence[str]
    text: str


class BadLines:
    """What becomes of lines that cannot be used: the first one ends the import."""

    count = 0

    def add(self, row: CsvRow, reason: str) -> None:
        """Deal with one. Raises `BadLine`."""
        raise BadLine(f"line {row.line}: {reason}")

    def summary(self) -> str:
        """Return the sentence about those that were dealt with."""
        return ""


class SetAside(BadLines):
    """Lines that cannot be used are written to a CSV file of their own, with the reason.

    A context manager.
    """

    def __init__(self, path: Path) -> None:
        """Make the file, or empty it. Raises `OSError`."""
        self._path = path
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(["line", "reason", "content"])

    def add(self, row: CsvRow, reason: str) -> None:
        self.count += 1
        self._writer.writerow([row.line, reason, row.text.rstrip("\r\n")])

    def summary(self) -> str:
        if self.count == 1:
            return f"1 bad line is in {self._path}"
        return f"{self.count} bad lines are in {self._path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class Skipped(BadLines):
    """Lines that cannot be used were dealt with when the file was read before."""

    def add(self, row: CsvRow, reason: str) -> None:
        pass


def add_skip_option(parser: ArgumentParser) -> None:
    """Let a command take `--skip-invalid`, for `bad_lines_to`."""
    parser.add_argument(
        "--skip-invalid",
        type=Path,
        metavar="FILE",
        help="write bad lines with their reasons to this file and take the rest",
    )


@contextmanager
def bad_lines_to(path: Path | None, *, source: Path) -> Iterator[BadLines]:
    """Have bad lines of `source` written to `path`; without one, the first ends the import.

    Raises `CommandError`.
    """
    if path is None:
        yield BadLines()
        return
    try:
        if path.exists() and source.exists() and path.samefile(source):
            raise CommandError(f"--skip-invalid would overwrite {source}.")
        aside = SetAside(path)
    except OSError as error:
        raise CommandError(f"Cannot write {path}: {error.strerror or error}.") from error
    with aside:
        yield aside


def open_csv(path: Path) -> TextIO:
    """Open a file or pipe of CSV as UTF-8 text, gzipped or not, with or without a byte order mark.

    Raises `OSError`.
    """
    return _as_text(path.open("rb"))


def open_csv_twice(path: Path) -> TextIO:
    """Open like `open_csv`, so that `seek(0)` goes back to the beginning: what a pipe holds is
    copied first.
    """
    file: IO[bytes] = path.open("rb")
    if not file.seekable():
        with file as pipe:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the text
            shutil.copyfileobj(pipe, file)
        file.seek(0)
    return _as_text(file)


def _as_text(file: IO[bytes]) -> TextIO:
    is_packed = cast(io.BufferedReader, file).peek(2)[:2] == GZIP
    plain = cast(IO[bytes], gzip.open(file)) if is_packed else file  # noqa: SIM115 - closed with the text
    # What is not UTF-8 is found in its line, see _Lines; a decoder would only know its block.
    return io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="")


def read_table(file: TextIO, bad_lines: BadLines) -> tuple[list[str], Iterator[CsvRow]]:
    """Return the names in the header, and the rows under it but for empty lines.

    A row that is no CSV goes to `bad_lines`. Raises `BadLine` for such a header.
    """
    lines = _Lines(file)
    header = next(_rows(lines, BadLines()), None)
    names = [name.strip() for name in header.fields] if header else []
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadLine(f"line 1: the header has {twice!r} twice")
    return names, _rows(lines, bad_lines)


def _rows(lines: "_Lines", bad_lines: BadLines) -> Iterator[CsvRow]:
    parser = csv.reader(lines, strict=True)
    while True:
        lines.taken = []
        first = lines.count + 1
        try:
            fields = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            bad_lines.add(
                CsvRow(first, (), "".join(lines.taken)), MEANINGS.get(str(error), str(error))
            )
            continue
        if fields:
            yield CsvRow(first, fields, "".join(lines.taken))


class _Lines:
    """The lines of a file, counted and bounded; `taken` are those since it was emptied."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.count = 0
        self.taken: list[str] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE_CHARS)
        if not line:
            raise StopIteration
        self.count += 1
        self.taken.append(line)
        if len(line) == MAX_LINE_CHARS and not line.endswith(("\n", "\r")):
            self._pass_over()
            raise csv.Error(f"longer than {MAX_LINE_CHARS} characters")
        if not line.isascii() and not _is_utf8(line):
            raise csv.Error("not UTF-8")
        return line

    def _pass_over(self) -> None:
        """Go to the end of a line that is too long."""
        while rest := self._file.readline(MAX_LINE_CHARS):
            if rest.endswith(("\n", "\r")):
                return


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
