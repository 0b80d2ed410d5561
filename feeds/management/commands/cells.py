"""`manage.py cells status|adopt|split-check|flip|tidy`"""

import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from confluent_kafka import KafkaException
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from eventbus import arguments, cellmap, cells, identity, kafka
from eventbus.cellfile import Draft
from eventbus.cellmap import Slots, refuse
from eventbus.cells import Cell
from eventbus.models import CellIdentity, DeadLetter
from feeds.growing import adoption, keys, leftovers, standing

WAIT_SECONDS = 30.0
# In so long has each process noticed that the map's file has changed, one that was busy or on a host
# that gets the file late too.
NOTICE_SECONDS = 60.0


class Move(NamedTuple):
    """Readers of which slots go from which cell to which."""

    source: Cell
    target: Cell
    slots: Slots


class Command(BaseCommand):
    help = "Show the cells, and move readers from one to another."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser("status", help="what each cell is and how far it has come")
        adopting = commands.add_parser("adopt", help="make a copied database that of its new cell")
        adopting.add_argument("name", help="the cell that the copy is to be")
        checking = commands.add_parser(
            "split-check", help="whether readers can be moved now; changes nothing"
        )
        flipping = commands.add_parser("flip", help="have another cell serve readers")
        for command in (checking, flipping):
            command.add_argument("--from", dest="source", required=True, metavar="NAME")
            command.add_argument("--to", dest="target", required=True, metavar="NAME")
            command.add_argument("--slots", required=True, help="such as 512-1023")
            _add_seconds(command, "--wait", WAIT_SECONDS, "for the copy to catch up, at most")
        tidying = commands.add_parser(
            "tidy", help="let no cell hold more than it serves, and delete what is left of others"
        )
        _add_seconds(
            tidying, "--notice", NOTICE_SECONDS, "in which every process has noticed a new map"
        )
        for command in (adopting, flipping, tidying):
            command.add_argument("--dry-run", action="store_true", help="only say what would be")

    def handle(self, *_args: Any, command: str, **options: Any) -> None:
        if not settings.FEED_CELLS.has_names:
            raise CommandError("FEED_CELLS is not set: there is one cell, and nothing to divide.")
        try:
            self._do(command, options)
        except KafkaException as error:
            raise CommandError(
                f"Kafka cannot be read ({error.args[0].str()}): check that it runs, try again."
            ) from error

    def _do(self, command: str, options: dict[str, Any]) -> None:
        match command:
            case "status":
                self._status()
            case "adopt":
                cell = _cell(options["name"])
                self.stdout.write(adoption.adopt(cell, dry_run=options["dry_run"]))
            case "split-check":
                self._check(_move(options), options["wait"])
            case "flip":
                self._flip(_move(options), options["wait"], dry_run=options["dry_run"])
            case _:
                self._tidy(options["notice"], dry_run=options["dry_run"])

    def _status(self) -> None:
        is_well = True
        for cell in cells.every().values():
            self.stdout.write(f"cell {cell.name}: {cell}")
            try:
                sentence = identity.problem(cell)
                told = [sentence] if sentence else _standing_of(cell)
            except (DatabaseError, KafkaException) as error:
                sentence = f"it does not answer: {str(error).partition(chr(10))[0]}"
                told = [sentence]
            is_well = is_well and not sentence
            for line in told:
                self.stdout.write(f"  {line}")
        if not is_well:
            sys.exit(1)

    def _check(self, move: Move, seconds: float) -> None:
        _require_served(move)
        standing.require_caught_up(move.source, move.target, move.slots, seconds)
        self.stdout.write(
            f"Cell {move.target.name} has what cell {move.source.name} has of slots "
            f"{cellmap.written(move.slots)}: they can be flipped."
        )

    def _flip(self, move: Move, seconds: float, *, dry_run: bool) -> None:
        source, target, slots = move
        text = cellmap.written(slots)
        if slots <= target.slots:
            self.stdout.write(f"Cell {target.name} serves slots {text} already.")
            return
        _require_served(move)
        draft = Draft(settings.ENV["FEED_CELLS"])
        draft.place(source.name, source.slots - slots, source.holds)
        draft.place(target.name, target.slots | slots, target.holds)
        self._check(move, seconds)
        if dry_run:
            self.stdout.write(f"Cell {target.name} would serve slots {text}.")
            return
        keys.give(source, target, slots)
        # There may be many of them, and the log goes on.
        standing.require_caught_up(source, target, slots, seconds)
        if self._write(draft):
            self.stdout.write(f"Cell {target.name} serves slots {text} now.")

    def _tidy(self, notice: float, *, dry_run: bool) -> None:
        found = cells.every().values()
        for cell in found:
            if cell.holds and not cell.slots:
                refuse(f"Cell {cell.name} serves nobody yet: flip slots to it, or take it away")
        identity.require_all(found)
        if dry_run:
            self._count_leftovers()
            return
        if any(cell.holds != cell.slots for cell in found):
            self._wait_until_noticed(notice)
            draft = _tidied(found)
            if not self._write(draft):
                return
            cells.use(draft.new_map, cells.own().name)
        for cell in cells.every().values():
            with cells.on(cell):
                CellIdentity.objects.update(holds=cellmap.written(cell.holds))
        self._wait_until_noticed(notice)
        for cell in cells.every().values():
            self._tidy_cell(cell)

    def _tidy_cell(self, cell: Cell) -> None:
        deleted: Counter[str] = Counter()
        for part in leftovers.delete(cell):
            deleted.update(part)
        deleted["idempotency_keys"] += keys.delete(cell)
        self.stdout.write(f"cell {cell.name}: {_told(deleted)} deleted")

    def _count_leftovers(self) -> None:
        cells.use(_tidied(cells.every().values()).new_map, cells.own().name)
        for cell in cells.every().values():
            self.stdout.write(f"cell {cell.name}: {_told(leftovers.count(cell))} would be deleted")

    def _write(self, draft: Draft) -> bool:
        if draft.write():
            return True
        self.stdout.write(draft.text)
        self.stderr.write(
            "The map is in no file that can be written here: put this in its place for every "
            "process, and run the command again."
        )
        return False

    def _wait_until_noticed(self, seconds: float) -> None:
        """Return when no process goes by the map from before the file's present one."""
        file = settings.FEED_CELLS_FILE
        since = file.stat().st_mtime if file else 0.0
        time.sleep(min(seconds, max(0.0, since + seconds - time.time())))


def _add_seconds(parser: ArgumentParser, option: str, default: float, what: str) -> None:
    parser.add_argument(
        option,
        type=arguments.a_duration,
        default=default,
        metavar="SECONDS",
        help=f"{what} ({default:.0f})",
    )


def _standing_of(cell: Cell) -> list[str]:
    with cells.on(cell):
        letters = DeadLetter.objects.unresolved().count()
        lag = standing.to_come(kafka.FEED_EVENTS, kafka.fanout_group())
    return [f"{lag} events to come, {letters} dead letters"]


def _cell(name: str) -> Cell:
    cell = cells.every().get(name)
    if cell is None:
        raise CommandError(
            f"There is no cell {name} in FEED_CELLS, which has {', '.join(cells.every())}."
        )
    return cell


def _move(options: dict[str, Any]) -> Move:
    target = _cell(options["target"])
    slots = cellmap.slots_of(target.name, options["slots"])
    if not slots:
        refuse("There are no slots to move")
    return Move(_cell(options["source"]), target, slots)


def _require_served(move: Move) -> None:
    if others := move.slots - move.source.slots:
        refuse(f"Cell {move.source.name} does not serve slots {cellmap.written(others)}")


def _tidied(found: Iterable[Cell]) -> Draft:
    """Return the map in which no cell holds more than it serves."""
    draft = Draft(settings.ENV["FEED_CELLS"])
    for cell in found:
        draft.place(cell.name, cell.slots, cell.slots)
    return draft


def _told(rows: Counter[str]) -> str:
    return ", ".join(f"{number} {table}" for table, number in sorted(rows.items())) or "nothing"
