"""What the chart renders is what this Kubernetes takes: each scenario against the API server's schemas, strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import schemas
from charts import CHART, SCENARIOS
from cluster import Cluster, CommandFailed
from cluster.api import command
from releases import helm


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    assert schemas.write(json.loads(cluster.kubectl("get", "--raw=/openapi/v2")), folder) > 100
    return folder


def conform(cluster: Cluster, folder: Path, documents: str) -> str:
    words = ("-strict", "-summary", "-schema-location", f"{folder}/{schemas.LOCATION}")
    return command(str(cluster.binaries / "kubeconform"), *words, input=documents)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(cluster: Cluster, folder: Path, scenario: str) -> None:
    rendered = helm("template", "net", str(CHART), "-f", str(CHART / "ci" / f"{scenario}-values.yaml"))
    assert "Invalid: 0, Errors: 0, Skipped: 0" in conform(cluster, folder, rendered)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("replicas: 1", "replica: 1"), ("replicas: 1", "replicas: one"), ("kind: StatefulSet", "kind: StatefulSets")],
)
def test_it_looks(cluster: Cluster, folder: Path, right: str, wrong: str) -> None:
    rendered = helm("template", "net", str(CHART), "-s", "templates/superlink/statefulset.yaml")
    assert right in rendered
    with pytest.raises(CommandFailed, match=r"Invalid: 1|Errors: 1"):
        conform(cluster, folder, rendered.replace(right, wrong, 1))
