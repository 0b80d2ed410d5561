"""`manage.py run_dlq`"""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from eventbus import arguments, identity, retry, worker
from eventbus.database import pool


class Command(BaseCommand):
    help = "Bring dead letters from Kafka into PostgreSQL, where the admin shows them, until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        arguments.add_metrics_options(parser)

    def handle(
        self, *_args: Any, metrics_port: int | None, metrics_host: str, **_options: Any
    ) -> None:
        pool.require("run_dlq")
        retry.until_possible(time.sleep, identity.require)
        metrics = arguments.metrics_address(metrics_host, metrics_port)
        worker.run_dead_letter_store(metrics)
