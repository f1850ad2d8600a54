"""Accounts: Keycloak is installed along, and a service account logs in and runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from arrows import PROBE, PYTHON
from built_images import ROOT, name, version
from cluster import Cluster
from pods import container, pod
from releases import DIGITS, Release, cli_job
from waits import wait_until

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def accounts(loaded: Cluster, keycloak: dict[str, str]) -> Iterator[Release]:
    with loaded.namespace() as namespace:
        sets = DIGITS | keycloak | {"networkPolicy.keycloak.from[0].podSelector.matchLabels.role": "browser"}
        release = Release(loaded, namespace, "oidc", sets, "acc", seconds=400)
        release.install()
        yield release


def test_a_service_account_logs_in_and_runs(accounts: Release) -> None:
    """`helm test` does it, with the client and the secret that the chart has made for pipelines."""
    assert "Phase:          Succeeded" in accounts.test()
    log = accounts.cluster.logs(accounts.namespace, f"{accounts.name}-superlink-0")
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    audit = [line for line in lines if isinstance(line.get("event"), dict)]
    starts = [line for line in audit if line["event"]["action"].endswith("StartRun")]
    assert {(line["actor"]["description"], line["status"]) for line in starts} == {
        ("service-account-trellis-pipeline", "started"),
        ("service-account-trellis-pipeline", "completed"),
    }


def test_nobody_runs_without_logging_in(accounts: Release) -> None:
    words = ("flwr", "run", "/app", f"--superlink={accounts.name}-superlink:9093", "--root-certificates=/certs/ca.crt")
    config, job = cli_job("anonymous", ROOT / "examples" / "digits", *words)
    spec = job["spec"]["template"]["spec"]
    spec["volumes"].append({"name": "certs", "secret": {"secretName": f"{accounts.name}-superlink-tls"}})
    spec["containers"][0]["volumeMounts"].append({"name": "certs", "mountPath": "/certs/ca.crt", "subPath": "ca.crt"})
    accounts.cluster.apply(config, job, namespace=accounts.namespace)
    accounts.cluster.wait("condition=Failed", "job/anonymous", namespace=accounts.namespace, seconds=120)
    assert "login" in accounts.cluster.logs(accounts.namespace, "job/anonymous")


def test_who_reaches_keycloak(accounts: Release) -> None:
    """The SuperLink and who was named reach its port, with the administration; that of health and metrics nobody."""
    cluster, namespace = accounts.cluster, accounts.namespace
    (keycloak,) = accounts.pods("keycloak")
    address = cluster.get("pod", keycloak, namespace)["status"]["podIP"]
    strangers = ("browser", "neighbour")  # pods that the chart did not make, one of which was named
    for one in strangers:
        idle = container(["sleep", "3600"], f"{name('cli')}:{version()}")
        cluster.apply(pod(one, idle, labels={"role": one}), namespace=namespace)
    for one in strangers:
        cluster.wait("condition=Ready", f"pod/{one}", namespace=namespace)
    reaching = {"superlink": [True, False], "serverapp": [False, False], "supernode": [False, False]}
    reaching |= {"clientapp": [False, False], "browser": [True, False], "neighbour": [False, False]}

    def open_from(role: str) -> list[bool]:
        one = role if role in strangers else accounts.pods(role)[0]
        said = cluster.inside(namespace, one, PYTHON, "-I", "-c", PROBE, f"{address}:8443", f"{address}:9000")
        found: list[bool] = json.loads(said.splitlines()[-1])
        return found

    wait_until(lambda: open_from("browser") == reaching["browser"], "the browser's pod has its rules")
    assert {role: open_from(role) for role in reaching} == reaching
    with cluster.policies_off():
        assert all(open_from("clientapp"))
        assert all(open_from("neighbour"))
