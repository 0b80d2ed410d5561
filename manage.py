#!/usr/bin/env python
"""Entry point of every command: `python manage.py help` lists them."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"error: {error}")
    except OperationalError as error:
        sys.exit(f"error: PostgreSQL cannot be used: {error}. Check DATABASE_URL, or `manage.py embedded status`.")


if __name__ == "__main__":
    main()
