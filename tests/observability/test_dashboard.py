"""The dashboard of Grafana: what it asks is there, and it asks for all there is."""

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "grafana/dashboards/feed.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
GRID_WIDTH = 24

# Of Prometheus itself, and of django-prometheus, which tests/docs knows.
OF_OTHERS = {"up", "ALERTS"}
OF_DJANGO = "django_http_"
# Of PromQL, not metrics.
WORDS = {
    *("by", "on", "or", "unless", "sum", "max", "min", "count", "rate", "increase", "time"),
    *("vector", "histogram_quantile"),
}


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel.get("targets", []):
            yield target["expr"]


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that an expression asks for, without what it does with them."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", expression)
    names = re.findall(r"[a-zA-Z_:][\w:]*", bare)
    return {re.sub("_(bucket|count|sum)$", "", name) for name in names} - WORDS


def test_every_metric_is_on_it_and_every_metric_on_it_is_there() -> None:
    source = (ROOT / "eventbus/metrics.py").read_text()
    ours = set(re.findall(r'(?:Counter|Gauge|Histogram)\(\s*"(\w+)"', source))
    rules = yaml.safe_load((ROOT / "prometheus-rules.yml").read_text())["groups"][0]["rules"]
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    asked = set().union(*map(metrics_in, expressions()))
    known = ours | recorded.keys() | OF_OTHERS
    assert {name for name in asked - known if not name.startswith(OF_DJANGO)} == set()
    shown = asked.union(*(metrics_in(recorded[name]) for name in asked & recorded.keys()))
    assert "kafka_consumer_lag" in shown
    assert ours - shown == set()


def test_panels_have_numbers_and_places_of_their_own() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_WIDTH, panel["title"]
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters), panel["title"]
    for one, other in combinations(PANELS, 2):
        assert not _overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or below)


def test_the_lag_and_the_workers_of_every_cell_count() -> None:
    """With cells their groups are `fanout.NAME`."""
    for expression in expressions():
        assert not re.search(r'group="(fanout|dlq)"', expression), expression


def test_prometheus_understands_every_question(promtool: str, tmp_path: Path) -> None:
    # By its check of recording rules, of which each may have one.
    rules = [
        {"record": f"asked:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "questions.yml"
    file.write_text(json.dumps({"groups": [{"name": "questions", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
