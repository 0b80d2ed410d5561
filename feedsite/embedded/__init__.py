"""The embedded stack: PostgreSQL, Valkey and a Kafka-compatible broker from Python wheels, on
127.0.0.1.

This module is what settings import, so it needs the standard library alone;
`feedsite.embedded.stack` starts and stops the servers.
"""

from pathlib import Path

from feedsite.embedded import state


def addresses(data_dir: Path) -> dict[str, str]:
    """Return `DATABASE_URL`, `REDIS_URL` and `KAFKA_BOOTSTRAP_SERVERS` as last recorded under
    `data_dir`.

    A server that was never started is missing; one that has stopped keeps its address.
    """
    return {variable: record.url for variable, record in state.read(data_dir).items()}
