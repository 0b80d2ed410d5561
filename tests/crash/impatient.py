"""Runs a manage.py command that waits only seconds for an answer of PostgreSQL, not a minute.

python -m tests.crash.impatient run_fanout
"""

import os
import sys
from importlib import import_module

ANSWER_SECONDS = 3.0


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    import_module("django").setup()
    import_module("eventbus.retry").ANSWER_SECONDS = ANSWER_SECONDS  # type: ignore[attr-defined]
    import_module("django.core.management").execute_from_command_line(["manage.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
