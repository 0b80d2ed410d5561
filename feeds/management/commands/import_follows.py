"""`manage.py import_follows FILE [--mutual] [--id-offset N] [--as-of TIME] [--skip-invalid
FILE]`
"""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from eventbus import arguments, envelope, identity
from eventbus.exceptions import InvalidEvent
from eventbus.terminal import count_of
from feeds import imports
from feeds.read import here
from posts.csvfiles import UNUSABLE, add_skip_option, bad_lines_to, open_csv


class Command(BaseCommand):
    help = "Load follows from CSV (gz too) with the header follower,followee; all of the file or nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--mutual", action="store_true", help="any two columns, each line in both directions"
        )
        parser.add_argument(
            "--id-offset",
            type=arguments.an_offset,
            default=0,
            help="add this to every id: 1 for files that start at 0",
        )
        parser.add_argument(
            "--as-of",
            type=arguments.a_text,
            metavar="TIME",
            help="when the file was true, such as 2026-01-31T12:00:00Z: what users did about a pair before that time "
            "is overruled, what they did after it stays (default: whatever they ever did stays)",
        )
        add_skip_option(parser)

    def handle(
        self,
        *_args: Any,
        file: Path,
        mutual: bool,
        id_offset: int,
        as_of: str | None,
        skip_invalid: Path | None,
        **_options: Any,
    ) -> None:
        identity.require()
        event_id = _event_id(as_of)
        try:
            with bad_lines_to(skip_invalid, source=file) as bad_lines, open_csv(file) as lines:
                pairs = imports.read_pairs(
                    lines, mutual=mutual, id_offset=id_offset, bad_lines=bad_lines
                )
                shown = tqdm(pairs, unit=" follows", unit_scale=True, disable=None)
                done = imports.import_follows(shown, event_id=event_id)
        except UNUSABLE as error:
            raise CommandError(f"{file}: {error}. Nothing was imported.") from error
        except OSError as error:
            raise CommandError(
                f"Cannot read {file}: {error.strerror or error}. Nothing was imported."
            ) from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted. Nothing was imported.") from None
        if done.new_follows:
            here.pages.wait_until_noticed()
        self.stdout.write(f"{count_of(done.lines, 'follow')} read, {done.new_follows} new")
        if bad_lines.count:
            self.stdout.write(bad_lines.summary())


def _event_id(as_of: str | None) -> int:
    if as_of is None:
        return imports.OLDEST
    try:
        return imports.event_id_of(envelope.read_time({"--as-of": as_of}, "--as-of"))
    except InvalidEvent as error:
        raise CommandError(f"{error} Such as 2026-01-31T12:00:00Z.") from error
    except ValueError as error:
        raise CommandError(f"--as-of {error}.") from error
