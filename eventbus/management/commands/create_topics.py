"""`manage.py create_topics`"""

from typing import Any

from confluent_kafka import KafkaException
from django.core.management.base import BaseCommand, CommandError

from eventbus import kafka


class Command(BaseCommand):
    help = "Create the Kafka topics, or add the partitions they lack. Idempotent."

    def handle(self, *_args: Any, **_options: Any) -> None:
        try:
            done = kafka.create_topics()
        except KafkaException as error:
            raise CommandError(
                f"Kafka did not create the topics ({error.args[0].str()}): check KAFKA_BOOTSTRAP_SERVERS."
            ) from error
        for topic, what in done.items():
            self.stdout.write(f"{topic}: {what}")
