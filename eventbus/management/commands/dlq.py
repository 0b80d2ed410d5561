"""`manage.py dlq list|show|replay|discard`"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Count, Q
from tqdm import tqdm

from eventbus import arguments, identity, producer
from eventbus.deadletters import payloads, replay
from eventbus.exceptions import PublishFailed
from eventbus.ids import node_lease
from eventbus.models import DeadLetter, DeadLetterQuerySet
from eventbus.terminal import TIME, agreed, count_of, visible

SELECTORS = ("id", "group", "error", "type", "since", "until", "all")


class Command(BaseCommand):
    help = "List, show, replay or discard dead letters."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        listing = commands.add_parser(
            "list", help="groups of unresolved dead letters, or with a selection the entries"
        )
        show = commands.add_parser("show", help="one dead letter, whole")
        show.add_argument("entry", type=arguments.an_id)
        replaying = commands.add_parser("replay", help="publish dead letters again")
        replaying.add_argument("--rate", type=arguments.a_rate, help="at most so many a second")
        replaying.add_argument(
            "--parked", action="store_true", help="also those replayed too often before"
        )
        replaying.add_argument(
            "--overdue",
            action="store_true",
            help="also those replayed over 10 minutes ago without an outcome yet",
        )
        discarding = commands.add_parser("discard", help="close dead letters for good")
        discarding.add_argument("--reason", type=arguments.a_text, required=True)
        for command in (listing, replaying, discarding):
            _add_selection(command)
        for command in (replaying, discarding):
            command.add_argument(
                "--dry-run", action="store_true", help="only say what would be done"
            )
            command.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *_args: Any, command: str, **options: Any) -> None:
        identity.require()
        {"list": self._list, "show": self._show, "replay": self._replay, "discard": self._discard}[
            command
        ](options)

    def _say(self, line: str) -> None:
        """Write one line; what is in it came through Kafka from anywhere."""
        self.stdout.write(visible(line, keep="\t"))

    def _say_block(self, text: str) -> None:
        self.stdout.write(visible(text, keep="\t\n"))

    def _list(self, options: dict[str, Any]) -> None:
        if any(options[name] for name in SELECTORS):
            for entry in (
                _selected(options).select_related("group").defer("value", "headers").iterator(1_000)
            ):
                self._say(
                    f"{entry.id}\t{entry.state}\t{entry.last_failed_at:{TIME}}\t{entry.group}"
                )
            return
        groups = DeadLetter.objects.unresolved().values_list(
            "group_id", "group__event_type", "group__exception", "group__message"
        )
        counted = list(groups.annotate(n=Count("id")).order_by("-n"))
        if not counted and self.stdout.isatty():  # in a pipe no line says so
            self.stdout.write("No dead letter waits for anyone.")
        for group_id, event_type, exception, message, count in counted:
            name = exception.rpartition(".")[2]
            self._say(
                f"group {group_id}\t{count} unresolved\t{event_type or 'undecodable'}\t{name}: {message}"
            )

    def _show(self, options: dict[str, Any]) -> None:
        entry = DeadLetter.objects.select_related("group").filter(id=options["entry"]).first()
        if entry is None:
            raise CommandError(
                f"There is no dead letter {options['entry']}: see `manage.py dlq list`."
            )
        self._say(f"dead letter {entry.id}, {entry.state}, group {entry.group_id} ({entry.group})")
        self._say(
            f"event {entry.event_id} {entry.event_type}, to {entry.topic}, key {payloads.pretty(entry.key)}"
        )
        tried = f"{count_of(entry.attempts, 'attempt')}, {count_of(entry.replays, 'replay')}"
        reason = f", discarded: {entry.discard_reason}" if entry.discard_reason else ""
        self._say(f"{tried}{reason}")
        self.stdout.write("")
        self._say_block(payloads.headers(entry.headers))
        self._say_block(payloads.pretty(entry.value))
        for failure in entry.failures.order_by("failed_at"):
            self.stdout.write("")
            self._say(
                f"{failure.failed_at:{TIME}} {failure} after {count_of(failure.retries, 'retry', 'retries')}"
            )
            self._say_block(failure.stack_trace)

    def _replay(self, options: dict[str, Any]) -> None:
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
        chosen = _selected(options).unresolved()
        _refuse_everything_unsaid(chosen, options)
        ids = self._confirmed(chosen, options, "discard")
        if not ids:
            return
        discarded = 0
        try:
            with tqdm(total=len(ids), unit=" entries", disable=None) as bar:
                for part in replay.batches(ids, replay.DISCARDED_AT_ONCE):
                    discarded += replay.discard(part, reason=options["reason"])
                    bar.update(len(part))
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{discarded} discarded")

    def _confirmed(
        self, entries: DeadLetterQuerySet, options: dict[str, Any], verb: str
    ) -> list[int]:
        """Return the ids to act on; none when it is a dry run or the operator says no."""
        ids = list(entries.order_by("id").values_list("id", flat=True))
        self.stdout.write(f"{count_of(len(ids), 'dead letter')} to {verb}")
        if options["dry_run"] or not ids:
            return []
        if not options["yes"] and not agreed(f"{verb.capitalize()} them? [y/N] "):
            raise CommandError(f"Nothing was done. Pass --yes to {verb} without being asked.")
        return ids


def _add_selection(parser: ArgumentParser) -> None:
    parser.add_argument("--id", type=arguments.an_id, nargs="+")
    parser.add_argument("--group", type=arguments.an_id, nargs="+")
    parser.add_argument(
        "--error", type=arguments.a_text, help="exception class, with or without its module"
    )
    parser.add_argument("--type", type=arguments.a_text, help="event type")
    parser.add_argument(
        "--since",
        type=arguments.a_time,
        help="last failed at or after this time (ISO 8601, UTC if without zone)",
    )
    parser.add_argument("--until", type=arguments.a_time, help="last failed before this time")
    parser.add_argument("--all", action="store_true")


def _selected(options: dict[str, Any]) -> DeadLetterQuerySet:
    """Return the entries that fit every selector given.

    Raises `CommandError` when none is given.
    """
    if not any(options[name] for name in SELECTORS):
        raise CommandError("Say which: --id, --group, --error, --type, --since, --until or --all.")
    entries = DeadLetter.objects.all()
    if options["id"]:
        entries = entries.filter(id__in=options["id"])
    if options["group"]:
        entries = entries.filter(group_id__in=options["group"])
    if options["error"]:
        is_class = Q(group__exception=options["error"])
        is_last_part = Q(group__exception__endswith=f".{options['error']}")
        entries = entries.filter(is_class | is_last_part)
    if options["type"]:
        entries = entries.filter(event_type=options["type"])
    if options["since"]:
        entries = entries.filter(last_failed_at__gte=options["since"])
    if options["until"]:
        entries = entries.filter(last_failed_at__lt=options["until"])
    return entries


def _refuse_everything_unsaid(chosen: DeadLetterQuerySet, options: dict[str, Any]) -> None:
    """Raise `CommandError` when a type, error or time happens to select all there are, and `--all`
    was not said.
    """
    if options["all"] or options["id"] or options["group"]:
        return
    count = chosen.count()
    if count > 1 and count == DeadLetter.objects.unresolved().count():
        raise CommandError(
            f"That selects all {count} dead letters that are not resolved. Pass --all too if you mean all."
        )
