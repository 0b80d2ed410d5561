"""`python -m benchmarks.kafka_limit WAITS SECONDS`: produce and await the acknowledgement, without
HTTP.

Keeps WAITS records under way with the production producer's settings; prints the rate and the
latencies as JSON.
"""

import json
import os
import sys
import time
from typing import Any

from confluent_kafka import Producer

from benchmarks.limits import TOPIC
from benchmarks.tables import percentile

VALUE = b'{"event_id": "383547998509989889", "type": "post.created", "version": 1}' + b"x" * 200


def measure(waits: int, seconds: float) -> dict[str, Any]:
    """Produce for `seconds`, the next record at each acknowledgement."""
    from eventbus import kafka

    producer = Producer(kafka.producer_config())
    latencies: list[float] = []
    under_way = 0
    started = time.perf_counter()

    def send() -> None:
        nonlocal under_way
        sent = time.perf_counter()

        def acknowledged(error: object, _message: object) -> None:
            nonlocal under_way
            under_way -= 1
            if error:
                raise RuntimeError(str(error))
            latencies.append(time.perf_counter() - sent)

        producer.produce(
            TOPIC, key=str(len(latencies) % 1000), value=VALUE, on_delivery=acknowledged
        )
        under_way += 1

    while time.perf_counter() < started + seconds:
        while under_way < waits:
            send()
        producer.poll(0.1)
    producer.flush(10)
    return {
        "rate": len(latencies) / seconds,
        "p50": percentile(latencies, 50),
        "p99": percentile(latencies, 99),
    }


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    print(json.dumps(measure(int(sys.argv[1]), float(sys.argv[2]))))
