#!/usr/bin/env python
"""Entry point of every command: `python manage.py help` lists them."""

import os
import sys

from django.db import Error as DatabaseFailure


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"error: {error}")
    except DatabaseFailure as error:
        sys.exit(f"error: {explain(error)}")


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
