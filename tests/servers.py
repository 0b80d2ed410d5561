"""Early pytest plugin (`-p tests.servers`): real servers for the tests, up before Django reads its
settings.

Each run has its own servers and data directory, named by `FEED_DATA_DIR`, and removes them at its
end. Where `DATABASE_URL`, `REDIS_URL` or `KAFKA_BOOTSTRAP_SERVERS` is set, that server is used as
it is. With `KAFKA=apache` the broker is an Apache Kafka, as in `make test-kafka`.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from feedsite.embedded import stack
from feedsite.embedded.processes import EmbeddedError
from tests.kafka import apache, running

# They run no test.
OPTIONS_WITHOUT_SERVERS = (
    "help",
    "version",
    "collectonly",
    "markers",
    "showfixtures",
    "show_fixtures_per_test",
)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    options = vars(early_config.known_args_namespace)
    # With `-n` each of the processes that run tests has servers of its own.
    only_distributes = options.get("numprocesses") and "PYTEST_XDIST_WORKER" not in os.environ
    if not any(options.get(option) for option in OPTIONS_WITHOUT_SERVERS):
        try:
            if only_distributes:
                _prepare()
            else:
                _start_servers(early_config)
        except (EmbeddedError, apache.CannotRun) as error:
            raise pytest.UsageError(str(error)) from error
    return (yield)


def _prepare() -> None:
    # Once for all processes, which would fetch into the same place.
    if _on_apache_kafka():
        apache.prepare()


def _start_servers(config: pytest.Config) -> None:
    data_dir = Path(tempfile.mkdtemp(prefix="feed-tests-"))
    os.environ.update(FEED_DATA_DIR=str(data_dir), FEED_EMBEDDED_FSYNC="off")
    # A polite kill then ends like Ctrl-C, which leaves no server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.add_cleanup(lambda: _remove_servers(data_dir))
    if _on_apache_kafka():
        _start_apache_kafka(config)
    stack.start(data_dir, say=_silent)


def _on_apache_kafka() -> bool:
    return os.environ.get("KAFKA") == "apache"


def _start_apache_kafka(config: pytest.Config) -> None:
    broker = apache.ApacheKafka()
    config.add_cleanup(broker.remove)
    broker.start()
    running.apache_kafka = broker
    # Short sessions and fetches, as on the embedded broker.
    os.environ.setdefault("KAFKA_SESSION_TIMEOUT_MS", "4000")
    os.environ.setdefault("KAFKA_FETCH_WAIT_MS", "10")
    os.environ["KAFKA_BOOTSTRAP_SERVERS"] = broker.address


def _remove_servers(data_dir: Path) -> None:
    stack.remove(data_dir, say=_silent)
    shutil.rmtree(data_dir, ignore_errors=True)


def _silent(line: str) -> None:
    pass
