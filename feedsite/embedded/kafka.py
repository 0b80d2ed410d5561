"""The embedded broker as a server like the others; what it is, `feedsite.embedded.tansu` knows."""

import signal
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from feedsite.embedded import tansu
from feedsite.embedded.processes import EmbeddedError, Server, executable, package_dir


def url(port: int, password: str) -> str:
    return f"127.0.0.1:{port}"


def command(data_dir: Path, port: int, password: str) -> list[str]:
    return [str(executable(_binary(), data_dir)), *tansu.arguments(port)]


def answers(url: str) -> bool:
    client = AdminClient({"bootstrap.servers": url, "socket.timeout.ms": 1_000, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def _binary() -> Path:
    binary = package_dir(tansu.PACKAGE) / tansu.BINARY
    if not binary.exists():
        raise EmbeddedError(
            f"The package {tansu.PACKAGE} holds no broker for this platform; set KAFKA_BOOTSTRAP_SERVERS instead."
        )
    return binary


KAFKA = Server(
    name="Kafka broker",
    variable="KAFKA_BOOTSTRAP_SERVERS",
    program=tansu.PROGRAM,
    stop_signal=signal.SIGTERM,
    drop_signal=signal.SIGKILL,
    user=None,
    url=url,
    command=command,
    answers=answers,
)
