"""A real Prometheus that scrapes the processes of a test, with the recording and alerting rules of
the repository.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedsite.embedded.processes import free_port
from tests.e2e.system import wait_until

ROOT = Path(__file__).resolve().parents[2]
SCRAPE_SECONDS = 1


class Prometheus:
    """Scrapes `targets`, addresses by job, every second."""

    def __init__(self, directory: Path, targets: dict[str, list[str]]) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip(
                "Prometheus is missing: install it to test what it scrapes (Debian: apt install prometheus)"
            )
        config = {
            "global": {
                "scrape_interval": f"{SCRAPE_SECONDS}s",
                "evaluation_interval": f"{SCRAPE_SECONDS}s",
            },
            "rule_files": [str(ROOT / "prometheus-rules.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": addresses}]}
                for job, addresses in targets.items()
            ],
        }
        (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML too
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        with (directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=log,
            )

    def wait_for_targets(self) -> None:
        """Return once every target has been scraped."""
        wait_until(
            lambda: all(value == 1 for _labels, value in self.query("up")) and self.query("up")
        )

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series now; nothing while Prometheus is still
        starting.
        """
        try:
            answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10)
        except httpx.TransportError:
            assert self._process.poll() is None, "Prometheus has ended; see prometheus.log."
            return []
        if answer.status_code == 503:
            return []
        body: dict[str, Any] = answer.json()
        assert body["status"] == "success", f"{expression}: {body}"
        data = body["data"]
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def value(self, expression: str) -> float | None:
        """Return the value of the only series; None when there is none."""
        series = self.query(expression)
        assert len(series) <= 1, f"{expression} has {len(series)} series"
        return series[0][1] if series else None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
