"""`manage.py run_fanout`"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from eventbus import worker
from feeds import handlers


class Command(BaseCommand):
    help = "Consume feed events and build the feeds, until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics on this port")

    def handle(self, *_args: Any, metrics_port: int | None, **_options: Any) -> None:
        worker.run_subscription(handlers.subscription(), metrics_port)
