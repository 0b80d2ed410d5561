"""What `docker-compose.yml` gives to each container, as far as it can be told without running it
(tests/containers).
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eventbus import cellmap

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
APPLICATION = ("api", "fanout", "dlq", "migrate", "fanout-b", "dlq-b")
OF_B = ("fanout-b", "dlq-b")
MAP = ROOT / "cells/cells.json"
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
    for name in SERVICES.keys() - {"api", "prometheus", "grafana"}:
        assert set(SERVICES[name]["networks"]) <= inside, name
    # Where ports are published there must be a network that leads out.
    for name in ("api", "prometheus", "grafana"):
        assert set(SERVICES[name]["networks"]) - inside, name


def secrets_of(name: str) -> set[str]:
    """Return the variables that a container gets a secret in."""
    variables = SERVICES[name]["environment"]
    return {key for key, value in variables.items() if value and SECRET.search(value)}


def test_workers_get_no_secret_that_is_not_theirs() -> None:
    a, b = {"DATABASE_URL", "REDIS_URL"}, {"B_DATABASE_URL", "B_REDIS_URL"}
    keys = {"DJANGO_SECRET_KEY", "JWT_SIGNING_KEY"}
    assert {name: secrets_of(name) for name in APPLICATION} == {
        "api": a | b | keys,
        "migrate": a | b,
        "fanout": a,
        "dlq": a,
        "fanout-b": b,
        "dlq-b": b,
    }


@pytest.mark.parametrize("name", APPLICATION)
def test_no_other_secret_comes_in_from_the_file_of_the_environment(name: str) -> None:
    """What is empty in a container's variables does not; all else of `.env` does."""
    wanted = set(re.findall(r"^(\w+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    hidden = {key for key, value in SERVICES[name]["environment"].items() if not value}
    in_the_addresses = set() if name in OF_B else {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}
    assert wanted - hidden - secrets_of(name) == in_the_addresses


def test_the_map_of_cells_leads_to_the_servers_and_each_has_its_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables = SERVICES["api"]["environment"]
    for name in ("DATABASE_URL", "REDIS_URL", "B_DATABASE_URL", "B_REDIS_URL"):
        monkeypatch.setenv(name, variables[name])
    places = cellmap.read(str(MAP)).places
    for name, place in places.items():
        suffix = "" if name == "a" else f"-{name}"
        assert f"@postgres{suffix}:5432/" in place.database
        assert f"@redis{suffix}:6379/" in place.redis
        for service in (f"fanout{suffix}", f"dlq{suffix}"):
            # Without a map the first ones are of no cell.
            given = SERVICES[service]["environment"]["FEED_CELL"]
            assert given in (name, "${FEED_CELLS:+" + name + "}")
            (mount,) = SERVICES[service]["volumes"]
            assert (mount["source"], mount["target"]) == ("./cells", "/etc/feed")
    example = (ROOT / ".env.example").read_text()
    assert f"# FEED_CELLS=/etc/feed/{MAP.name}" in example.splitlines()


def test_the_second_cell_is_started_by_its_profile_alone_and_keeps_its_own_data() -> None:
    second = {name for name, service in SERVICES.items() if service.get("profiles") == ["cells"]}
    assert second == {"fanout-b", "dlq-b", "postgres-b", "redis-b"}
    kept = [
        str(mount).partition(":")[0]
        for name in ("postgres", "redis", "postgres-b", "redis-b")
        for mount in SERVICES[name]["volumes"]
        if isinstance(mount, str)
    ]
    assert kept == ["postgres", "redis", "postgres-b", "redis-b"]
    assert set(kept) <= COMPOSE["volumes"].keys()


def test_prometheus_finds_the_workers_of_the_second_cell_by_the_names_of_the_first() -> None:
    for name in OF_B:
        aliases = SERVICES[name]["networks"]["metrics"]["aliases"]
        assert aliases == [name.removesuffix("-b")]


def test_the_role_of_the_application_is_not_that_of_the_administrator() -> None:
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "postgres"
    script = (ROOT / "postgres/create-role.sh").read_text()
    assert "NOSUPERUSER NOCREATEDB NOCREATEROLE" in script
    assert "ALTER SCHEMA public OWNER TO feed" in script


def test_every_image_of_a_server_can_be_pinned() -> None:
    for name in ("postgres", "redis", "kafka", "prometheus", "grafana"):
        assert re.fullmatch(r"\$\{\w+_IMAGE:-[\w./-]+:[\w.]+\}", SERVICES[name]["image"])


def test_workers_tell_their_metrics_to_other_containers() -> None:
    for name in ("fanout", "dlq", "fanout-b", "dlq-b"):
        assert SERVICES[name]["command"][-2:] == ["--metrics-host", "0.0.0.0"]  # noqa: S104
