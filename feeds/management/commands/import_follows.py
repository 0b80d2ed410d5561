"""`manage.py import_follows FILE [--mutual]`"""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from eventbus.csvfiles import UNUSABLE, open_csv
from feeds import cache, imports


class Command(BaseCommand):
    help = "Load follows from CSV (gz too) with the header follower,followee; all of the file or nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--mutual", action="store_true", help="any two columns, each line in both directions")
        parser.add_argument(
            "--id-offset", type=int, default=0, help="add this to every id: 1 for files that start at 0"
        )

    def handle(self, *_args: Any, file: Path, mutual: bool, id_offset: int, **_options: Any) -> None:
        try:
            with open_csv(file) as lines:
                pairs = imports.read_pairs(lines, mutual=mutual, id_offset=id_offset)
                done = imports.import_follows(tqdm(pairs, unit=" follows", unit_scale=True, disable=None))
        except UNUSABLE as error:
            raise CommandError(f"{file}: {error}. Nothing was imported.") from error
        except OSError as error:
            raise CommandError(f"Cannot read {file}: {error.strerror or error}.") from error
        if done.new_follows:
            cache.wait_until_noticed()
        self.stdout.write(f"{done.lines} follows read, {done.new_follows} new")
