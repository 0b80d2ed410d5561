"""What the overlay of two cells gives to whom, as kustomize builds it."""

import jsonschema
import pytest

from eventbus import cellmap, kafka
from eventbus.cells import Cell
from tests.k8s import keda
from tests.k8s.test_manifests import CELLS, Manifest, built, containers, pod

MAP = CELLS / "cells.json"
KEYS = {"feed-api-secrets"}
OF_ALL_CELLS = {"feed-cell-a", "feed-cell-b"}


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return built(CELLS)


def by_name(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    found = [manifest for manifest in manifests if manifest["kind"] in kinds]
    return {manifest["metadata"]["name"]: manifest for manifest in found}


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    return by_name(manifests, "Deployment", "Job", "CronJob")


def names_of(container: Manifest, kind: str) -> set[str]:
    """Return the Secrets or ConfigMaps that a container has variables from."""
    return {source[kind]["name"] for source in container["envFrom"] if kind in source}


def test_each_cell_has_workers_and_all_have_one_api(manifests: list[Manifest]) -> None:
    deployments = by_name(manifests, "Deployment")
    assert deployments.keys() == {"api", "fanout-a", "dlq-a", "fanout-b", "dlq-b"}
    for name, deployment in deployments.items():
        cell = name.partition("-")[2]
        for container in containers(deployment):
            variables = {one["name"]: one["value"] for one in container.get("env", [])}
            assert variables == ({"FEED_CELL": cell} if cell else {})
    (config,) = [name for name in by_name(manifests, "ConfigMap") if name.startswith("feed-config")]
    for workload in workloads(manifests).values():
        for container in containers(workload):
            assert names_of(container, "configMapRef") == {config}


def test_each_gets_the_passwords_of_its_own_cell_alone(manifests: list[Manifest]) -> None:
    for name, workload in workloads(manifests).items():
        cell = name.partition("-")[2]
        own = {f"feed-cell-{cell}"} if cell else OF_ALL_CELLS
        for container in containers(workload):
            keys = KEYS if container["name"] == "api" else set()
            assert names_of(container, "secretRef") == own | keys


def test_every_process_has_the_map_and_an_address_for_each_name_in_it(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = by_name(manifests, "ConfigMap")
    (config,) = [one["data"] for name, one in maps.items() if name.startswith("feed-config")]
    for variable in ("A_DATABASE_URL", "A_REDIS_URL", "B_DATABASE_URL", "B_REDIS_URL"):
        assert "@" not in config[variable], "a password is for a Secret"
        monkeypatch.setenv(variable, config[variable])
    assert maps["feed-cells"]["data"] == {MAP.name: MAP.read_text()}
    assert cellmap.read(MAP.read_text()).places.keys() == {"a", "b"}
    assert config["FEED_CELLS"] == f"/etc/feed/{MAP.name}"
    for workload in workloads(manifests).values():
        volumes = pod(workload)["spec"]["volumes"]
        assert {"name": "cells", "configMap": {"name": "feed-cells"}} in volumes
        for container in containers(workload):
            mount = {"name": "cells", "mountPath": "/etc/feed", "readOnly": True}
            assert mount in container["volumeMounts"]


def test_no_cell_counts_the_pods_of_another_as_its_own(manifests: list[Manifest]) -> None:
    deployments = by_name(manifests, "Deployment")
    for selecting in by_name(manifests, "Deployment", "PodDisruptionBudget").values():
        wanted = selecting["spec"]["selector"]["matchLabels"].items()
        chosen = [
            name
            for name, deployment in deployments.items()
            if wanted <= pod(deployment)["metadata"]["labels"].items()
        ]
        assert chosen == [selecting["metadata"]["name"]]


def test_each_cell_scales_on_the_lag_of_its_own_group(manifests: list[Manifest]) -> None:
    scalers = by_name(manifests, "ScaledObject")
    assert scalers.keys() == {"fanout-a", "fanout-b"}
    for name, scaler in scalers.items():
        jsonschema.validate(scaler, keda.SCALED_OBJECT)
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
        (trigger,) = scaler["spec"]["triggers"]
        cell = Cell(name.partition("-")[2], "", frozenset(), frozenset())
        assert trigger["metadata"]["consumerGroup"] == cell.named(kafka.FANOUT_GROUP)
