"""`manage.py replay_topic --from-beginning`"""

from argparse import ArgumentParser
from typing import Any

from confluent_kafka import KafkaException
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from eventbus import identity
from eventbus.consume import topic_replay
from eventbus.exceptions import DeadLetterFlood, ServerAway
from eventbus.ids import clock
from feeds import handlers, partitions


class Command(BaseCommand):
    help = (
        "Process all events that Kafka still holds: into an empty database, this rebuilds posts, follows and feeds. "
        "Events processed before change nothing. Load imported follows first: they are not in the log."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--from-beginning", action="store_true", required=True, help="say that you mean it"
        )

    def handle(self, *_args: Any, **_options: Any) -> None:
        identity.require()
        try:
            # By it ids are told to be from the future.
            clock.read()
            with partitions.kept(), tqdm(unit=" events", unit_scale=True, disable=None) as progress:
                total = topic_replay.replay(handlers.subscription(), progress.update)
        except KafkaException as error:
            raise CommandError(
                f"Kafka cannot be read ({error.args[0].str()}): check that it runs, try again."
            ) from error
        except ServerAway as error:
            raise CommandError(
                f"{error} What was replayed stays: run the command again when it answers."
            ) from error
        except DeadLetterFlood as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{total} events replayed")
