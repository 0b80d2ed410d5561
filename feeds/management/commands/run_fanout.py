"""`manage.py run_fanout`"""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connections

from eventbus import arguments, identity, retry, worker
from eventbus.database import pool
from eventbus.ids import clock
from feeds import handlers, housekeeping, partitions


class Command(BaseCommand):
    help = "Consume feed events, build the feeds and keep house, until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        arguments.add_metrics_options(parser)

    def handle(
        self, *_args: Any, metrics_port: int | None, metrics_host: str, **_options: Any
    ) -> None:
        pool.require("run_fanout")
        retry.until_possible(time.sleep, identity.require)
        # By it ids are told to be from the future.
        retry.until_possible(time.sleep, clock.read)
        retry.until_possible(time.sleep, housekeeping.watch_pulled_authors)
        connections.close_all()
        metrics = arguments.metrics_address(metrics_host, metrics_port)
        with partitions.kept(), housekeeping.housekeeper():
            worker.run_subscription(handlers.subscription(), metrics)
