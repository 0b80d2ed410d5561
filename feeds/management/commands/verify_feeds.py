"""`manage.py verify_feeds [--user ID …] [--repair]`"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from typing import Any

from django.core.management.base import BaseCommand
from tqdm import tqdm

from eventbus import arguments, identity
from feeds import verification
from feeds.verification import Report, Scope


class Command(BaseCommand):
    help = "Prove the materialised feeds equal to their definition. Exit status 0: equal, 1: not."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--user",
            type=arguments.an_id,
            nargs="+",
            metavar="ID",
            help="only these users' feeds",
        )
        parser.add_argument(
            "--repair", action="store_true", help="make them equal; workers wait meanwhile"
        )

    def handle(self, *_args: Any, user: list[int] | None, repair: bool, **_options: Any) -> None:
        identity.require()
        report = verification.verify(user, _progress)
        self._print(report)
        if repair and not report.equal:
            verification.repair(user, _progress)
            self.stdout.write("repaired; now:")
            report = verification.verify(user, _progress)
            self._print(report)
        if not report.equal:
            sys.exit(1)

    def _print(self, report: Report) -> None:
        for kind, user_id, post_id, author_id in report.first:
            self.stdout.write(f"{kind}: post {post_id} by {author_id} in the feed of {user_id}")
        more = report.missing + report.extra + report.duplicate - len(report.first)
        if more > 0:
            self.stdout.write(f"… and {more} more")
        self.stdout.write(
            f"{report.entries} entries checked: {report.missing} missing, {report.extra} extra, "
            f"{report.duplicate} duplicate; {report.wrong_states} wrong follower counts or states"
        )
        if report.leaving:
            self.stdout.write(
                f"{report.leaving} more of deleted posts are being taken out, and shown to nobody"
            )


def _progress(scopes: Sequence[Scope]) -> Iterable[Scope]:
    return tqdm(scopes, unit=" ranges", disable=None)
