"""`manage.py add_partition`"""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from feeds.partitions import partitions, start_next


class Command(BaseCommand):
    help = (
        "Have the entries of posts to come go into a new partition of feed_entries. "
        "`run_fanout` does so by itself when the newest has FEED_PARTITION_ROWS rows."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        try:
            added = start_next()
        except DatabaseError as error:
            raise CommandError(f"No partition was added, see the runbook: {str(error).strip()}.") from error
        for partition in partitions():
            self.stdout.write(
                f"{partition.name}: posts {_range(partition.start, partition.end)}, {partition.rows:,} rows"
            )
        if added is None:
            raise CommandError("No partition was added: the newest one is empty, or another process is at it.")


def _range(start: int | None, end: int | None) -> str:
    return f"{start or 'from the first'} to {end - 1 if end else 'the last'}"
