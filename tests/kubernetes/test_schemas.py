"""What the chart renders is what this Kubernetes takes: each scenario against the API server's schemas, strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import schemas
from charts import CHART, SCENARIOS, Document, Rendered, rendered
from cluster import Cluster, CommandFailed
from commands import command
from releases import helm

PEERS: Document = {"from": [{"podSelector": {}}]}
HOSTS = {name: {"host": f"{name}.example.org", "tlsSecret": name} for name in ("control", "fleet", "http", "keycloak")}
EVERYTHING: Document = {
    "access": {
        "service": {"type": "LoadBalancer", "keycloak": {"enabled": True}},
        "ingress": {"enabled": True, **HOSTS},
    },
    "metrics": {"serviceMonitor": {"enabled": True}},
    "networkPolicy": dict.fromkeys(("control", "fleet", "keycloak", "metrics"), PEERS),
    "keycloak": {
        "enabled": True,
        "database": {"vendor": "postgres", "url": "jdbc:postgresql://db", "existingSecret": "db"},
    },
    "superlink": {"persistence": {"enabled": False}, "supernodeKeys": ["key"], "roles": "[roles]"},
    "serverapp": {
        "autoscaling": {"enabled": True},
        "appEnv": {"DEPTH": 3},
        "appSecrets": [{"name": "password", "secret": "db", "key": "password"}],
        "egress": [{"ports": [{"port": 5432}]}],
    },
    "clientapp": {
        "autoscaling": {"enabled": True},
        "data": {"volume": {"persistentVolumeClaim": {"claimName": "records"}}},
        "tolerations": [{"operator": "Exists"}],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    },
    "supernodes": [
        {
            "name": "a",
            "keySecret": {"name": "key"},
            "policy": "apps = []",
            "trustedEntities": {"me": "ssh-ed25519 AAAA"},
        },
        {"name": "b", "samePod": True, "clientapp": {"autoscaling": {"enabled": False}}},
    ],
}
STRANGE = {"ServiceMonitor"}
"""Kinds that this cluster does not know."""


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
    text = helm("template", "net", str(CHART), "-f", str(CHART / "ci" / f"{scenario}-values.yaml"))
    assert "Invalid: 0, Errors: 0, Skipped: 0" in conform(cluster, folder, text)


def test_everything_switched_on(cluster: Cluster, folder: Path) -> None:
    chart = rendered(None, EVERYTHING)
    assert {"HorizontalPodAutoscaler", "Ingress", *STRANGE} <= {one["kind"] for one in chart}
    known = Rendered(one for one in chart if one["kind"] not in STRANGE)
    assert "Invalid: 0, Errors: 0, Skipped: 0" in conform(cluster, folder, known.text())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("replicas: 1", "replica: 1"), ("replicas: 1", "replicas: one"), ("kind: StatefulSet", "kind: StatefulSets")],
)
def test_it_looks(cluster: Cluster, folder: Path, right: str, wrong: str) -> None:
    text = helm("template", "net", str(CHART), "-s", "templates/superlink/statefulset.yaml")
    assert right in text
    with pytest.raises(CommandFailed, match=r"Invalid: 1|Errors: 1"):
        conform(cluster, folder, text.replace(right, wrong, 1))
