#!/usr/bin/env python
"""Entry point of every command: `python manage.py help` lists them."""

import errno
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from django.db import Error as DatabaseFailure

# What a shell shows of a program that SIGPIPE or SIGINT has ended.
EXIT_PIPE_CLOSED = 141
EXIT_INTERRUPTED = 130


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("DJANGO_COLORS", "nocolor")
    open_streams()
    try:
        try:
            run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has seen enough, as in `| head`.
        drop_output()
        sys.exit(EXIT_PIPE_CLOSED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        drop_output()
        sys.exit("error: There is no space left for the output.")


def run() -> None:
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    from feedsite import each_cell

    try:
        arguments = each_cell.take_cell(sys.argv)
        if each_cell.is_for_each(arguments):
            sys.exit(each_cell.run(arguments))
        execute_from_command_line(arguments)
    except ImproperlyConfigured as error:
        sys.exit(f"error: {error}")
    except DatabaseFailure as error:
        sys.exit(f"error: {explain(error)}")


def open_streams() -> None:
    """Have both streams there, and take whatever text: names of files need not be UTF-8, nor be terminals."""
    # Of a program started without any, as by `>&-`, they are None.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Have what is still in the buffer written to nowhere, or writing it would fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: DatabaseFailure) -> str:
    """Return one sentence for an error of the database that has to do with the deployment; raise any other."""
    from eventbus import retry

    if retry.is_unreachable(error):
        return f"PostgreSQL cannot be used: {error}. Check DATABASE_URL, or `manage.py embedded status`."
    if retry.is_transient(error):
        return f"PostgreSQL could not do this now: {error}. Run the command again."
    if getattr(error.__cause__, "sqlstate", None) in ("42P01", "42703"):
        return f"The tables do not fit this version: {error}. Run `manage.py migrate`."
    raise error


if __name__ == "__main__":
    main()
