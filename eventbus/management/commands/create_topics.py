"""`manage.py create_topics`"""

import time
from argparse import ArgumentParser
from typing import Any

from confluent_kafka import KafkaException
from django.core.management.base import BaseCommand, CommandError

from eventbus import kafka, topics

# A broker may hear of what was just done a moment after it was confirmed.
LOOKS = 5
LOOK_SECONDS = 0.5


class Command(BaseCommand):
    help = "Create the Kafka topics, add the partitions they lack, and say what is wrong with them. Idempotent."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--fix", action="store_true", help="also set the configuration of topics that exist"
        )

    def handle(self, *_args: Any, fix: bool, **_options: Any) -> None:
        try:
            self._create(fix)
            wrong = _what_is_wrong()
        except KafkaException as error:
            raise CommandError(
                f"Kafka did not create the topics ({error.args[0].str()}): check KAFKA_BOOTSTRAP_SERVERS."
            ) from error
        if wrong:
            raise CommandError("\n".join([*wrong, "What is to be set, create_topics --fix sets."]))

    def _create(self, fix: bool) -> None:
        for topic, what in kafka.create_topics().items():
            self.stdout.write(f"{topic}: {what}")
        if fix:
            topics.fix()


def _what_is_wrong() -> list[str]:
    wrong = topics.check()
    for _ in range(LOOKS - 1):
        if wrong:
            time.sleep(LOOK_SECONDS)
            wrong = topics.check()
    return wrong
