"""`manage.py load`"""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from feedsite.demo.load import Load


class Command(BaseCommand):
    help = "Post as the users of the demo's sample network, and read their feeds, at a steady rate."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--port", type=int, default=8000, help="of the API on this machine (8000)"
        )
        parser.add_argument(
            "--rate", type=float, default=200, help="posts a second (200); each with four reads"
        )
        parser.add_argument("--seconds", type=float, default=30, help="how long (30)")

    def handle(self, *_args: Any, port: int, rate: float, seconds: float, **_options: Any) -> None:
        if rate <= 0 or seconds <= 0:
            raise CommandError("--rate and --seconds must be greater than 0.")
        load = Load(port, rate, seconds)
        started = time.monotonic()
        with tqdm(total=int(rate * seconds), unit=" posts", disable=None) as progress:
            load.run(progress.update)
        rate = load.accepted / (time.monotonic() - started)
        self.stdout.write(
            f"{load.accepted} posts accepted ({rate:.0f} a second), {load.read} feeds read"
        )
