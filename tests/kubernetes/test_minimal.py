"""The smallest installation: it trains."""

from __future__ import annotations

import pytest
from built_images import ROOT
from cluster import CommandFailed
from compose_world import accuracy
from pods import container, pod
from releases import Release, cli_job

pytestmark = pytest.mark.timeout(1500)

DIGITS = ROOT / "examples" / "digits"


def test_everything_is_admitted_where_pods_are_restricted(minimal: Release) -> None:
    """The namespace lets nobody else in."""
    cluster, namespace = minimal.cluster, minimal.namespace
    labels = cluster.get("namespace", namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    bold = container(["true"], securityContext={})
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        cluster.apply(pod("bold", bold), namespace=namespace)
    pods = cluster.items("pod", namespace, f"app.kubernetes.io/instance={minimal.name}")
    assert len(pods) == 2 + 2 * 2
    assert {one["spec"]["automountServiceAccountToken"] for one in pods} == {False}
    assert all(not status["restartCount"] for one in pods for status in one["status"]["containerStatuses"])


def test_helm_test(minimal: Release) -> None:
    assert "Phase:          Succeeded" in minimal.test()


def test_digits_trains(minimal: Release) -> None:
    """Submitted by our command line's image, as a Job."""
    words = ("flwr", "run", "/app", "--stream", f"--superlink={minimal.name}-superlink:9093", "--insecure")
    minimal.cluster.apply(*cli_job("digits", DIGITS, *words), namespace=minimal.namespace)
    minimal.cluster.wait("condition=Complete", "job/digits", namespace=minimal.namespace, seconds=240)
    log = minimal.cluster.logs(minimal.namespace, "job/digits")
    assert accuracy(log) >= 0.95, log
