"""`manage.py erase_user USER_ID [--yes] [--wait]`"""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from eventbus import arguments, cells, identity
from eventbus.cells import Cell
from eventbus.exceptions import IdsUnavailable, PublishFailed
from eventbus.ids import idempotency
from eventbus.terminal import agreed
from eventbus.watch.outcomes import outcome_of
from feeds import services

POLL_SECONDS = 0.5


class Command(BaseCommand):
    help = (
        "Erase all that a user did and all that is held about them, up to now. It cannot be undone."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user_id", type=arguments.an_id)
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument("--wait", action="store_true", help="return when all of it is gone")

    def handle(self, *_args: Any, user_id: int, yes: bool, wait: bool, **_options: Any) -> None:
        identity.require()
        if not yes and not agreed(f"Erase user {user_id} for good? [y/N] "):
            raise CommandError("Nothing was done. Pass --yes to erase without being asked.")
        try:
            fact = services.erase_user(user_id=user_id, actor_id=user_id, ids=idempotency.fresh())
        except (PublishFailed, IdsUnavailable) as error:
            raise CommandError(f"{error} Nothing was promised: try again.") from error
        self.stdout.write(f"accepted as event {fact.event_id}")
        if wait:
            self._wait(fact.event_id)

    def _wait(self, event_id: int) -> None:
        for cell in cells.every().values():
            with cells.on(cell):
                self._wait_in(cell, event_id)
        self.stdout.write("erased")

    def _wait_in(self, cell: Cell, event_id: int) -> None:
        told = ""
        while (outcome := outcome_of(event_id)) and outcome.state == "pending":
            step = outcome.step or "waiting for a worker"
            if step != told:
                self.stdout.write(f"cell {cell.name}: {step}" if cell.name else step)
                told = step
            time.sleep(POLL_SECONDS)
        if outcome and outcome.state == "dead_lettered":
            raise CommandError(f"Event {event_id} is a dead letter: see manage.py dlq list.")
