"""`manage.py run_dlq`"""

from argparse import ArgumentParser
from contextlib import suppress
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError

from eventbus import arguments, identity, worker
from eventbus.database import pool


class Command(BaseCommand):
    help = "Bring dead letters from Kafka into PostgreSQL, where the admin shows them, until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        arguments.add_metrics_options(parser)

    def handle(
        self, *_args: Any, metrics_port: int | None, metrics_host: str, **_options: Any
    ) -> None:
        pool.require("run_dlq")
        # A database that does not answer now is looked at before anything is taken from Kafka.
        with suppress(DatabaseError):
            identity.require()
        metrics = arguments.metrics_address(metrics_host, metrics_port)
        worker.run_dead_letter_store(metrics)
