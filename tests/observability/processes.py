"""The system's processes with the ports that Prometheus and probes ask."""

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from feedsite.embedded.processes import free_port
from tests.e2e.system import PATIENCE, Process, System, wait_until


class Worker:
    """A `run_fanout` or `run_dlq` with its metrics port, once it has its partitions.

    The embedded broker would keep one that leaves before that as a ghost in the group.
    """

    def __init__(self, system: System, command: str, **variables: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: Process = system.command(
            command, "--metrics-port", str(self.port), **variables
        )
        wait_until(lambda: self.answers("/healthz") and self.partitions() > 0)

    @property
    def log(self) -> Path:
        return self.process.log

    def answers(self, path: str) -> bool:
        try:
            return self.get(path).status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE)

    def samples(self, name: str, **labels: str) -> list[float]:
        """Return the values of one metric whose labels include these."""
        return [
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def lag(self, group: str = "fanout") -> float:
        return sum(self.samples("kafka_consumer_lag", group=group))

    def partitions(self) -> float:
        return sum(self.samples("kafka_consumer_assigned_partitions"))
