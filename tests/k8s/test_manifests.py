"""The manifests in `k8s/` are valid, and agree with each other, the code and the documentation."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from django.core.management import get_commands

from eventbus import kafka
from feedsite import wait_for_migrations
from tests.k8s import keda

ROOT = Path(__file__).resolve().parents[2]
BASE, EXAMPLE = ROOT / "k8s/base", ROOT / "k8s/overlays/example"
CELLS = ROOT / "k8s/overlays/cells"
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.30", "1.34"
NOT_OF_KUBERNETES = ("kustomize.config.k8s.io/", "keda.sh/")

Manifest = dict[str, Any]


def manifests(*folders: Path) -> Iterator[Manifest]:
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            yield from yaml.safe_load_all(file.read_text())


def of_kind(*kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests(BASE) if manifest["kind"] in kinds]


def named(kind: str, name: str) -> Manifest:
    (found,) = [manifest for manifest in of_kind(kind) if manifest["metadata"]["name"] == name]
    return found


def pod(workload: Manifest) -> Manifest:
    spec = workload["spec"]
    template: Manifest = (
        spec["jobTemplate"]["spec"]["template"]
        if workload["kind"] == "CronJob"
        else spec["template"]
    )
    return template


def workloads() -> list[Manifest]:
    return of_kind("Deployment", "Job", "CronJob")


def containers(workload: Manifest) -> list[Manifest]:
    spec = pod(workload)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def config() -> dict[str, str]:
    lines = (BASE / "config.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def validate(documents: Iterable[Manifest], version: str) -> int:
    """Check everything that Kubernetes itself defines; return how many that was."""
    own = [
        document
        for document in documents
        if not document["apiVersion"].startswith(NOT_OF_KUBERNETES)
    ]
    for document in own:
        kubernetes_validate.validate(document, version, strict=True)
    return len(own)


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
def test_kubernetes_accepts_every_manifest_and_knows_every_field(version: str) -> None:
    assert validate(manifests(BASE, EXAMPLE), version) > 10


def test_every_manifest_is_part_of_the_base() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {file.name for file in BASE.glob("*.yaml")}


@pytest.mark.parametrize("folder", [BASE, EXAMPLE, CELLS], ids=["base", "example", "cells"])
def test_kustomize_builds_it(folder: Path) -> None:
    assert validate(built(folder), NEWEST_KUBERNETES) > 10


def built(folder: Path) -> list[Manifest]:
    """Return what kustomize makes of the folder; skips the test where it is not installed."""
    if (tool := shutil.which("kustomize") or shutil.which("kubectl")) is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    command = [tool, "build" if tool.endswith("kustomize") else "kustomize"]
    text = subprocess.run([*command, folder], check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


def test_no_container_runs_as_root_or_writes_to_its_image() -> None:
    for workload in workloads():
        assert pod(workload)["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod(workload)["spec"]["automountServiceAccountToken"] is False
        for container in containers(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"mountPath": "/tmp", "name": "tmp"} in container["volumeMounts"]  # noqa: S108
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_secrets_are_referred_to_and_never_written_down() -> None:
    assert of_kind("Secret") == []
    assert not [name for name in config() if re.search(r"SECRET|KEY|PASSWORD|_URL", name)]
    for workload in workloads():
        for container in containers(workload):
            assert {"secretRef": {"name": "feed-secrets"}} in container["envFrom"]
            assert "env" not in container


def test_only_the_api_gets_the_keys_of_tokens_and_sessions() -> None:
    for workload in workloads():
        for container in containers(workload):
            secrets = [
                source["secretRef"]["name"]
                for source in container["envFrom"]
                if "secretRef" in source
            ]
            assert ("feed-api-secrets" in secrets) == (container["name"] == "api")


def test_pods_reach_nothing_but_names_their_servers_and_the_api_an_identity_provider() -> None:
    policies = [policy for policy in of_kind("NetworkPolicy") if "Egress" in types_of(policy)]
    every_pod = {"app.kubernetes.io/part-of": "feed-backend"}
    closed = [policy for policy in policies if not policy["spec"].get("egress")]
    assert [policy["spec"]["podSelector"]["matchLabels"] for policy in closed] == [every_pod]
    open_ports = {
        (tuple(policy["spec"]["podSelector"]["matchLabels"].values()), port["port"])
        for policy in policies
        for rule in policy["spec"].get("egress", [])
        for port in rule["ports"]
    }
    everybody = {(("feed-backend",), port) for port in (53, 5432, 6379, 9092)}
    assert open_ports == everybody | {(("api",), 443)}


def types_of(policy: Manifest) -> list[str]:
    types: list[str] = policy["spec"]["policyTypes"]
    return types


def test_workers_tell_their_metrics_to_others_than_their_own_pod() -> None:
    for name in ("fanout", "dlq"):
        (worker,) = pod(named("Deployment", name))["spec"]["containers"]
        assert worker["command"][-2:] == ["--metrics-host", "0.0.0.0"]  # noqa: S104


def test_every_command_that_containers_run_exists() -> None:
    run = [
        " ".join(container.get("command", []))
        for workload in workloads()
        for container in containers(workload)
    ]
    commands = {name for line in run for name in re.findall(r"manage\.py (\w+)", line)}
    assert {"migrate", "create_topics", "prune", "run_dlq"} <= commands <= get_commands().keys()
    for script in {found for line in run for found in re.findall(r"bin/[\w-]+", line)}:
        assert (ROOT / script).exists()


def test_no_outage_of_a_server_kills_or_holds_back_an_api_process() -> None:
    spec = pod(named("Deployment", "api"))["spec"]
    (api,) = spec["containers"]
    probes = [
        api[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    assert probes == ["/healthz"] * 3
    (wait,) = spec["initContainers"]
    assert wait["command"] == ["python", "-m", wait_for_migrations.__name__]


def test_every_variable_of_the_configuration_is_documented() -> None:
    documented = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs/settings.md").read_text()))
    assert config().keys() <= documented


def test_selectors_find_the_pods_they_are_for() -> None:
    labels = {
        workload["metadata"]["name"]: pod(workload)["metadata"]["labels"]
        for workload in workloads()
    }
    for deployment in of_kind("Deployment"):
        assert (
            deployment["spec"]["selector"]["matchLabels"] == labels[deployment["metadata"]["name"]]
        )
    for budget in of_kind("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"] == labels[budget["metadata"]["name"]]
    for service in of_kind("Service"):
        assert service["spec"]["selector"] == labels[service["metadata"]["name"]]


def test_whoever_scales_a_deployment_is_alone_in_it() -> None:
    scaled = {
        scaler["spec"]["scaleTargetRef"]["name"]
        for scaler in of_kind("HorizontalPodAutoscaler", "ScaledObject")
    }
    assert scaled == {"api", "fanout"}
    for name in scaled:
        assert "replicas" not in named("Deployment", name)["spec"]


def test_fanout_scales_on_the_lag_of_its_group_and_no_further_than_there_are_partitions() -> None:
    scaler = named("ScaledObject", "fanout")["spec"]
    (trigger,) = scaler["triggers"]
    assert trigger["metadata"]["topic"] == kafka.FEED_EVENTS
    assert trigger["metadata"]["consumerGroup"] == kafka.FANOUT_GROUP
    assert trigger["metadata"]["bootstrapServersFromEnv"] in config()
    assert scaler["maxReplicaCount"] <= int(config()["KAFKA_PARTITIONS"])


def test_keda_accepts_the_scaled_object_and_knows_every_field() -> None:
    scaler = named("ScaledObject", "fanout")
    jsonschema.validate(scaler, keda.SCALED_OBJECT)
    # What KEDA makes of it is an autoscaler of Kubernetes, whose behavior it takes as it is.
    behavior = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    autoscaler = named("HorizontalPodAutoscaler", "api")
    made = {**autoscaler, "spec": {**autoscaler["spec"], "behavior": behavior}}
    assert validate([made], NEWEST_KUBERNETES) == 1
    misspelt = {**scaler, "spec": {**scaler["spec"], "maxReplicas": 3}}
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(misspelt, keda.SCALED_OBJECT)


def test_the_ingress_shows_clients_what_they_need_and_keeps_the_rest_inside() -> None:
    (ingress,) = [manifest for manifest in manifests(EXAMPLE) if manifest["kind"] == "Ingress"]
    (rule,) = ingress["spec"]["rules"]
    shown = {path["path"] for path in rule["http"]["paths"]}
    assert shown >= {"/posts", "/feeds", "/follows", "/mutes", "/blocks", "/users", "/events"}
    assert shown.isdisjoint({"/", "/metrics", "/readyz", "/healthz"})
