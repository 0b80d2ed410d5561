"""`manage.py issue_token USER_ID [--scope S] [--ttl SECONDS]`"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from eventbus import arguments
from feedsite.authentication import issue_token


class Command(BaseCommand):
    help = "Print one JWT for a user."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user_id", type=arguments.an_id)
        parser.add_argument(
            "--scope",
            type=arguments.a_text,
            default="",
            help="space-separated, for example feeds:read",
        )
        parser.add_argument(
            "--ttl",
            type=arguments.some_seconds,
            default=3_600,
            help="seconds (default: 3600)",
        )

    def handle(self, *_args: Any, user_id: int, scope: str, ttl: int, **_options: Any) -> None:
        try:
            self.stdout.write(issue_token(user_id, scope, ttl))
        except ValueError as error:
            raise CommandError(str(error)) from error
