"""What `docker-compose.yml` gives to each container, as far as it can be told without running it
(tests/containers).
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
APPLICATION = ("api", "fanout", "dlq", "migrate")
# Their images write to places of their own when they start.
WRITING = {"kafka", "grafana", "zookeeper", "kafka-zk"}
SECRET = re.compile(r"\$\{(\w*(?:PASSWORD|KEY)\w*)")


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name not in WRITING)
    assert service["deploy"]["resources"]["limits"]["pids"] > 0
    assert service["networks"]


def test_no_secret_is_in_the_arguments_of_a_process() -> None:
    for service in SERVICES.values():
        assert not SECRET.search(str(service.get("command", "")))


def test_ports_are_on_loopback_unless_told() -> None:
    published = {port for service in SERVICES.values() for port in service.get("ports", [])}
    assert len(published) == 3
    for port in published:
        assert port.startswith(("127.0.0.1:", "${API_ADDRESS:-127.0.0.1}:")), port


def test_each_network_has_a_purpose_and_servers_reach_nobody_outside() -> None:
    inside = {
        name for name, network in COMPOSE["networks"].items() if (network or {}).get("internal")
    }
    assert inside == {"servers", "metrics"}
    for name in ("fanout", "dlq", "migrate", "postgres", "redis", "kafka", "zookeeper", "kafka-zk"):
        assert set(SERVICES[name]["networks"]) <= inside, name
    # Where ports are published there must be a network that leads out.
    for name in ("api", "prometheus", "grafana"):
        assert set(SERVICES[name]["networks"]) - inside, name


def test_workers_get_no_secret_that_is_not_theirs() -> None:
    ours = ["DATABASE_URL", "REDIS_URL"]
    for name in APPLICATION:
        variables = SERVICES[name]["environment"]
        given = {key for key, value in variables.items() if SECRET.search(value)}
        keys = ["DJANGO_SECRET_KEY", "JWT_SIGNING_KEY"] if name == "api" else []
        assert given == {*ours, *keys}, name
        # What is empty here would come in from .env otherwise.
        wanted = set(re.findall(r"^(\w+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE))
        hidden = {key for key, value in variables.items() if not value}
        assert wanted - hidden - given == {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}, "in the URLs"


def test_the_role_of_the_application_is_not_that_of_the_administrator() -> None:
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "postgres"
    script = (ROOT / "postgres/create-role.sh").read_text()
    assert "NOSUPERUSER NOCREATEDB NOCREATEROLE" in script
    assert "ALTER SCHEMA public OWNER TO feed" in script


def test_every_image_of_a_server_can_be_pinned() -> None:
    for name in ("postgres", "redis", "kafka", "prometheus", "grafana"):
        assert re.fullmatch(r"\$\{\w+_IMAGE:-[\w./-]+:[\w.]+\}", SERVICES[name]["image"])


def test_workers_tell_their_metrics_to_other_containers() -> None:
    for name in ("fanout", "dlq"):
        assert SERVICES[name]["command"][-2:] == ["--metrics-host", "0.0.0.0"]  # noqa: S104
