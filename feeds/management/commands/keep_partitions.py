"""`manage.py keep_partitions`"""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from eventbus import identity, retry
from eventbus.ids.snowflake import time_of
from eventbus.terminal import TIME
from feeds.partitions import keep_up, layout


class Command(BaseCommand):
    help = (
        "Make the partitions of feed_entries that are needed next, drop those that are too old, "
        "and show all. `run_fanout` does so by itself."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        identity.require()
        try:
            keep_up()
        except DatabaseError as error:
            if retry.is_unreachable(error):
                raise  # which has a sentence of its own
            raise CommandError(
                f"Not all was done, see the runbook: {str(error).strip()}."
            ) from error
        found = layout()
        for partition in found.partitions:
            start, end = time_of(partition.start), time_of(partition.end)
            self.stdout.write(
                f"{partition.name}: posts from {start:{TIME}} to {end:{TIME}}, "
                f"{partition.rows:,} rows"
            )
        self.stdout.write(f"Nothing is materialised up to post {found.horizon}.")
