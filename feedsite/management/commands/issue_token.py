"""`manage.py issue_token USER_ID [--scope S] [--ttl SECONDS]`"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from eventbus.ids.snowflake import is_id
from feedsite.authentication import issue_token


class Command(BaseCommand):
    help = "Print one JWT for a user."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user_id", type=int)
        parser.add_argument("--scope", default="", help="space-separated, for example feeds:read")
        parser.add_argument("--ttl", type=int, default=3_600, help="seconds (default: 3600)")

    def handle(self, *_args: Any, user_id: int, scope: str, ttl: int, **_options: Any) -> None:
        if not is_id(user_id):
            raise CommandError("USER_ID must be 1 to 2^63-1.")
        if ttl < 1:
            raise CommandError("--ttl must be at least 1 second.")
        try:
            self.stdout.write(issue_token(user_id, scope, ttl))
        except ValueError as error:
            raise CommandError(str(error)) from error
