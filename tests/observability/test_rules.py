"""The rules of prometheus-rules.yml, tested by Prometheus's own tool."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "prometheus-rules.yml"],
        ["test", "rules", "tests/observability/rules_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_finds_no_fault(promtool: str, arguments: list[str]) -> None:
    run = subprocess.run(
        [promtool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_is_tested_and_has_a_chapter_in_the_runbook() -> None:
    rules = (ROOT / "prometheus-rules.yml").read_text()
    tests = (ROOT / "tests/observability/rules_test.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) == 19
    fired = re.findall(r"alertname: (\w+)\n +eval_time: \S+\n +exp_alerts:\n", tests)
    assert set(alerts) == set(fired)
    chapters = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    }
    urls = re.findall(r"runbook_url: https://\S+/docs/runbook.html#(\S+)", rules)
    assert len(urls) == len(alerts)
    assert set(urls) <= chapters


def test_every_metric_is_explained() -> None:
    explained = re.findall(r"`(\w+)`", (ROOT / "docs/metrics.md").read_text())
    defined = re.findall(
        r'(?:Counter|Gauge|Histogram)\(\s*"(\w+)"', (ROOT / "eventbus/metrics.py").read_text()
    )
    assert len(defined) >= 14
    assert set(defined) <= set(explained)
