"""`manage.py dlq list|show|replay|discard`"""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Count
from tqdm import tqdm

from eventbus import producer
from eventbus.deadletters import payloads, replay
from eventbus.exceptions import PublishFailed
from eventbus.ids import node_lease
from eventbus.models import DeadLetter, DeadLetterQuerySet

SELECTORS = ("id", "group", "error", "type", "since", "until", "all")


class Command(BaseCommand):
    help = "List, show, replay or discard dead letters."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        listing = commands.add_parser(
            "list", help="groups of unresolved dead letters, or with a selection the entries"
        )
        show = commands.add_parser("show", help="one dead letter, whole")
        show.add_argument("entry", type=int)
        replaying = commands.add_parser("replay", help="publish dead letters again")
        replaying.add_argument("--rate", type=float, help="at most so many a second")
        replaying.add_argument(
            "--parked", action="store_true", help="also those replayed too often before"
        )
        replaying.add_argument(
            "--overdue",
            action="store_true",
            help="also those replayed over 10 minutes ago without an outcome yet",
        )
        discarding = commands.add_parser("discard", help="close dead letters for good")
        discarding.add_argument("--reason", required=True)
        for command in (listing, replaying, discarding):
            _add_selection(command)
        for command in (replaying, discarding):
            command.add_argument(
                "--dry-run", action="store_true", help="only say what would be done"
            )
            command.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *_args: Any, command: str, **options: Any) -> None:
        {"list": self._list, "show": self._show, "replay": self._replay, "discard": self._discard}[
            command
        ](options)

    def _list(self, options: dict[str, Any]) -> None:
        if any(options[name] for name in SELECTORS):
            for entry in (
                _selected(options).select_related("group").defer("value", "headers").iterator(1_000)
            ):
                self.stdout.write(
                    f"{entry.id}\t{entry.state}\t{entry.last_failed_at:%Y-%m-%d %H:%M:%S}\t{entry.group}"
                )
            return
        groups = DeadLetter.objects.unresolved().values_list(
            "group_id", "group__event_type", "group__exception", "group__message"
        )
        for group_id, event_type, exception, message, count in groups.annotate(
            n=Count("id")
        ).order_by("-n"):
            name = exception.rpartition(".")[2]
            self.stdout.write(
                f"group {group_id}\t{count} unresolved\t{event_type or 'undecodable'}\t{name}: {message}"
            )

    def _show(self, options: dict[str, Any]) -> None:
        entry = DeadLetter.objects.select_related("group").filter(id=options["entry"]).first()
        if entry is None:
            raise CommandError(
                f"There is no dead letter {options['entry']}: see `manage.py dlq list`."
            )
        self.stdout.write(
            f"dead letter {entry.id}, {entry.state}, group {entry.group_id} ({entry.group})"
        )
        self.stdout.write(
            f"event {entry.event_id} {entry.event_type}, to {entry.topic}, key {payloads.pretty(entry.key)}"
        )
        self.stdout.write(
            f"{entry.attempts} attempts, {entry.replays} replays {entry.discard_reason}\n"
        )
        self.stdout.write(payloads.headers(entry.headers))
        self.stdout.write(payloads.pretty(entry.value))
        for failure in entry.failures.order_by("failed_at"):
            self.stdout.write(
                f"\n{failure.failed_at:%Y-%m-%d %H:%M:%S} {failure} after {failure.retries} retries"
            )
            self.stdout.write(failure.stack_trace)

    def _replay(self, options: dict[str, Any]) -> None:
        if options["rate"] is not None and options["rate"] <= 0:
            raise CommandError("--rate must be above 0.")
        which = {name: options[name] for name in ("parked", "overdue")}
        ids = self._confirmed(_selected(options).replayable(**which), options, "replay")
        if not ids:
            return
        totals = replay.Replayed()
        try:
            with tqdm(total=len(ids), unit=" entries", disable=None) as bar:
                for totals in replay.replay(ids, rate=options["rate"], **which):
                    bar.update(totals.acknowledged + totals.skipped + totals.failed - bar.n)
        except PublishFailed as error:
            raise CommandError(
                f"{error} Those not replayed are still open: run the command again."
            ) from error
        finally:
            producer.close()
            node_lease.release()
        self.stdout.write(
            f"{totals.acknowledged} replayed, {totals.skipped} skipped, {totals.failed} not acknowledged"
        )
        if totals.failed:
            raise CommandError(
                "Some were not acknowledged by Kafka and are still open: run the command again."
            )

    def _discard(self, options: dict[str, Any]) -> None:
        ids = self._confirmed(_selected(options).unresolved(), options, "discard")
        if not ids:
            return
        try:
            self.stdout.write(f"{replay.discard(ids, reason=options['reason'])} discarded")
        except ValueError as error:
            raise CommandError(str(error)) from error

    def _confirmed(
        self, entries: DeadLetterQuerySet, options: dict[str, Any], verb: str
    ) -> list[int]:
        """Return the ids to act on; none when it is a dry run or the operator says no."""
        ids = list(entries.order_by("id").values_list("id", flat=True))
        self.stdout.write(f"{len(ids)} dead letters to {verb}")
        if options["dry_run"] or not ids:
            return []
        if not options["yes"] and not _agreed(f"{verb.capitalize()} them? [y/N] "):
            raise CommandError(f"Nothing was done. Pass --yes to {verb} without being asked.")
        return ids


def _agreed(question: str) -> bool:
    """Return what the operator says; no where there is nobody to ask."""
    try:
        return input(question).strip().lower() == "y"
    except EOFError:
        return False


def _add_selection(parser: ArgumentParser) -> None:
    parser.add_argument("--id", type=int, nargs="+")
    parser.add_argument("--group", type=int, nargs="+")
    parser.add_argument("--error", help="exception class, with or without its module")
    parser.add_argument("--type", help="event type")
    parser.add_argument(
        "--since",
        type=_time,
        help="last failed at or after this time (ISO 8601, UTC if without zone)",
    )
    parser.add_argument("--until", type=_time, help="last failed before this time")
    parser.add_argument("--all", action="store_true")


def _selected(options: dict[str, Any]) -> DeadLetterQuerySet:
    """Return the entries that fit every selector given. Raises `CommandError` when none is given."""
    if not any(options[name] for name in SELECTORS):
        raise CommandError("Say which: --id, --group, --error, --type, --since, --until or --all.")
    entries = DeadLetter.objects.all()
    if options["id"]:
        entries = entries.filter(id__in=options["id"])
    if options["group"]:
        entries = entries.filter(group_id__in=options["group"])
    if options["error"]:
        entries = entries.filter(
            group__exception__regex=rf"(^|\.){options['error'].replace('.', '[.]')}$"
        )
    if options["type"]:
        entries = entries.filter(event_type=options["type"])
    if options["since"]:
        entries = entries.filter(last_failed_at__gte=options["since"])
    if options["until"]:
        entries = entries.filter(last_failed_at__lt=options["until"])
    return entries


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not an ISO 8601 time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
