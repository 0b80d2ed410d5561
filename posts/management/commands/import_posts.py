"""`manage.py import_posts FILE [--skip-invalid FILE] [--as-new]`"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from eventbus import identity, producer
from eventbus.exceptions import EventBusError
from eventbus.ids import id_ranges, node_lease
from eventbus.ids.id_ranges import IdRange
from eventbus.terminal import count_of
from posts import imports
from posts.csvfiles import (
    UNUSABLE,
    BadLines,
    Skipped,
    add_skip_option,
    bad_lines_to,
    open_csv_twice,
)
from posts.imports import Checked, Draft, Publication

AGAIN = "Run the command again: what has arrived is not made twice."


class Command(BaseCommand):
    help = "Publish posts from CSV (gz too) with the columns author,text and optionally t_unix,data, as events."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        add_skip_option(parser)
        parser.add_argument(
            "--as-new",
            action="store_true",
            help="make the posts once more if the same ones were imported before",
        )

    def handle(
        self, *_args: Any, file: Path, skip_invalid: Path | None, as_new: bool, **_options: Any
    ) -> None:
        identity.require()
        try:
            with (
                bad_lines_to(skip_invalid, source=file) as bad_lines,
                open_csv_twice(file) as lines,
            ):
                checked = self._check(file, lines, bad_lines)
                lines.seek(0)
                drafts = imports.read_drafts(lines, Skipped() if skip_invalid else None)
                self._publish(
                    _shown(drafts, "publishing", checked.posts), self._ids(checked, as_new)
                )
        except OSError as error:
            raise CommandError(f"Cannot read {file}: {error.strerror or error}.") from error
        finally:
            producer.close()
            node_lease.release()
        if bad_lines.count:
            self.stdout.write(bad_lines.summary())

    def _check(self, file: Path, lines: TextIO, bad_lines: BadLines) -> Checked:
        try:
            checked = imports.check(_shown(imports.read_drafts(lines, bad_lines), "checking"))
        except UNUSABLE as error:
            raise CommandError(f"{file}: {error}. Nothing was published.") from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted. Nothing was published.") from None
        if not checked.is_in_order_of_time:
            self.stderr.write(
                "Feeds will show these posts in the order of the file, which is not that of t_unix."
            )
        return checked

    def _ids(self, checked: Checked, as_new: bool) -> IdRange:
        try:
            if as_new:
                return IdRange.lease(checked.posts)
            reserved = id_ranges.reserve(f"import_posts {checked.fingerprint}", checked.posts)
        except EventBusError as error:
            raise CommandError(f"{error} Nothing was published.") from error
        if reserved.is_known:
            self.stderr.write(
                "These posts were imported before: what has arrived is not made twice."
            )
        return reserved.ids

    def _publish(self, drafts: Iterable[Draft], ids: IdRange) -> None:
        publication = Publication(ids)
        try:
            publication.publish(drafts)
            done = publication.finish()
        except UNUSABLE as error:
            raise CommandError(
                f"The file was changed while it was read: {error}. {_so_far(publication)}"
            ) from error
        except EventBusError as error:
            raise CommandError(f"{error} {_so_far(publication)} {AGAIN}") from error
        except KeyboardInterrupt:
            raise CommandError(f"Interrupted. {_so_far(publication)} {AGAIN}") from None
        rate = done.acknowledged / done.seconds
        self.stdout.write(
            f"{count_of(done.acknowledged, 'post')} published in {done.seconds:.1f} s ({rate:,.0f}/s)"
        )
        if done.failed:
            raise CommandError(
                f"{done.failed} posts were not acknowledged by Kafka: {done.first_error}. {AGAIN}"
            )


def _shown(drafts: Iterable[Draft], doing: str, total: int | None = None) -> Iterable[Draft]:
    return tqdm(drafts, doing, total, unit=" posts", unit_scale=True, disable=None, file=sys.stderr)


def _so_far(publication: Publication) -> str:
    producer.close()  # waits for what is on its way
    return f"{publication.done.acknowledged} posts were published."
