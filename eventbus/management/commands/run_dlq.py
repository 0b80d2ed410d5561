"""`manage.py run_dlq`"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from eventbus import worker
from eventbus.database import pool


class Command(BaseCommand):
    help = "Bring dead letters from Kafka into PostgreSQL, where the admin shows them, until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--metrics-port", type=int, help="serve Prometheus metrics on this port"
        )

    def handle(self, *_args: Any, metrics_port: int | None, **_options: Any) -> None:
        pool.require("run_dlq")
        worker.run_dead_letter_store(metrics_port)
