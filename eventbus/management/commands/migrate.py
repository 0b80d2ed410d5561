"""`manage.py migrate`: Django's, which also makes a new database that of its cell, and has workers
begin at the oldest record for it.
"""

from typing import Any

from django.conf import settings
from django.core.management.commands import migrate

from eventbus import identity, kafka
from eventbus.consume import offsets


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        identity.require_claimable()
        super().handle(*args, **options)
        if not options["plan"] and not options["check_unapplied"] and options["app_label"] is None:
            identity.claim()
            for group, topic in kafka.groups().items():
                offsets.begin(group, topic, settings.KAFKA_PARTITIONS)
