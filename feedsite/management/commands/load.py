"""`manage.py load`"""

import socket
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from eventbus import arguments
from feedsite.demo.load import Load

CONNECT_SECONDS = 5.0


class Command(BaseCommand):
    help = "Post as the users of the demo's sample network, and read their feeds, at a steady rate."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--port",
            type=arguments.a_port,
            default=8000,
            help="of the API on this machine (8000)",
        )
        parser.add_argument(
            "--rate",
            type=arguments.a_rate,
            default=200,
            help="posts a second (200); each with four reads",
        )
        parser.add_argument(
            "--seconds", type=arguments.a_duration, default=30, help="how long (30)"
        )

    def handle(self, *_args: Any, port: int, rate: float, seconds: float, **_options: Any) -> None:
        _look(port)
        load = Load(port, rate, seconds)
        started = time.monotonic()
        with tqdm(total=int(rate * seconds), unit=" posts", disable=None) as progress:
            load.run(progress.update)
        done = load.accepted / (time.monotonic() - started)
        self.stdout.write(
            f"{load.accepted} posts accepted ({done:.0f} a second), {load.read} feeds read"
        )


def _look(port: int) -> None:
    """Raise `CommandError` when there is nothing at the port: a load is for an API that runs."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise CommandError(
            f"Nothing answers at 127.0.0.1:{port} ({error.strerror or error}): start `make demo`, or name its port."
        ) from error
