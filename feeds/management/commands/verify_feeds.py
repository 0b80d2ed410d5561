"""`manage.py verify_feeds [--user ID …] [--repair]`"""

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from feeds import cache, verification
from feeds.verification import Report


class Command(BaseCommand):
    help = "Prove the materialised feeds equal to their definition. Exit status 0: equal, 1: not."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", type=int, nargs="+", metavar="ID", help="only these users' feeds")
        parser.add_argument("--repair", action="store_true", help="make them equal; workers wait meanwhile")

    def handle(self, *_args: Any, user: list[int] | None, repair: bool, **_options: Any) -> None:
        report = verification.verify(user)
        self._print(report)
        if repair and not report.equal:
            verification.repair(user)
            cache.close()
            self.stdout.write("repaired; now:")
            report = verification.verify(user)
            self._print(report)
        if not report.equal:
            sys.exit(1)

    def _print(self, report: Report) -> None:
        for difference in (report.missing, report.extra, report.duplicate):
            for user_id, post_id, author_id in difference.first:
                self.stdout.write(f"{difference.kind}: post {post_id} by {author_id} in the feed of {user_id}")
            if difference.count > len(difference.first):
                self.stdout.write(f"{difference.kind}: … and {difference.count - len(difference.first)} more")
        self.stdout.write(
            f"{report.entries} entries checked: {report.missing.count} missing, {report.extra.count} extra, "
            f"{report.duplicate.count} duplicate; {report.wrong_follower_counts} wrong follower counts"
        )
