"""`manage.py migrate`: Django's, which also makes a new database that of its cell."""

from typing import Any

from django.core.management.commands import migrate

from eventbus import identity


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        identity.require_claimable()
        super().handle(*args, **options)
        if not options["plan"] and not options["check_unapplied"] and options["app_label"] is None:
            identity.claim()
