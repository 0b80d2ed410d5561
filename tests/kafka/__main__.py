"""Runs pytest on a real Apache Kafka of its own: `python -m tests.kafka [pytest's arguments]`."""

import os
import sys

import pytest

from tests.kafka import running
from tests.kafka.apache import ApacheKafka, CannotRun


def main() -> int:
    try:
        broker = ApacheKafka()
        try:
            broker.start()
            running.apache_kafka = broker
            # Short sessions and fetches, as on the embedded broker.
            os.environ.setdefault("KAFKA_SESSION_TIMEOUT_MS", "4000")
            os.environ.setdefault("KAFKA_FETCH_WAIT_MS", "10")
            os.environ["KAFKA_BOOTSTRAP_SERVERS"] = broker.address
            return pytest.main(sys.argv[1:])
        finally:
            broker.remove()
    except CannotRun as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's message
        return 2


if __name__ == "__main__":
    sys.exit(main())
