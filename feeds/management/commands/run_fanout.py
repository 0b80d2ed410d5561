"""`manage.py run_fanout`"""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection

from eventbus import retry, worker
from eventbus.database import pool
from eventbus.ids import clock
from feeds import handlers, housekeeping, partitions


class Command(BaseCommand):
    help = "Consume feed events, build the feeds and keep house, until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--metrics-port", type=int, help="serve Prometheus metrics on this port"
        )

    def handle(self, *_args: Any, metrics_port: int | None, **_options: Any) -> None:
        pool.require("run_fanout")
        # By it ids are told to be from the future.
        retry.until_possible(time.sleep, clock.read)
        retry.until_possible(time.sleep, housekeeping.watch_pulled_authors)
        connection.close()
        with partitions.kept(), housekeeping.housekeeper():
            worker.run_subscription(handlers.subscription(), metrics_port)
