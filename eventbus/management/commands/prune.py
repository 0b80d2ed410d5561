"""`manage.py prune [--dry-run]`"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from eventbus import identity, pruning


class Command(BaseCommand):
    help = "Delete what nothing needs any more: old processed events, expired idempotency keys, old dead letters."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")

    def handle(self, *_args: Any, dry_run: bool, **_options: Any) -> None:
        identity.require()
        verb = "would be deleted" if dry_run else "deleted"
        for table, count in pruning.prune(dry_run=dry_run):
            self.stdout.write(f"{table}: {count} {verb}")
