"""`manage.py export_user USER_ID`"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from eventbus import arguments, identity
from feeds import export


class Command(BaseCommand):
    help = (
        "Write everything held about a user to standard output, as JSON lines; the last one is of "
        "the kind end."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user_id", type=arguments.an_id)

    def handle(self, *_args: Any, user_id: int, **_options: Any) -> None:
        identity.require()
        for piece in export.pieces(user_id, thorough=True):
            self.stdout.write(piece.decode(), ending="")
