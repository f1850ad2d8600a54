"""Pods that tests make themselves, admitted under Pod Security `restricted`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster import BUSYBOX

GUARDED: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 49999,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def container(command: Sequence[str] | None, image: str = BUSYBOX, **more: Any) -> dict[str, Any]:
    """With None, it does what its image says."""
    words = {} if command is None else {"command": list(command)}
    return {"name": "main", "image": image, "securityContext": GUARDED, **words, **more}


def pod(
    name: str, *containers: Mapping[str, Any], labels: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    spec = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0, "containers": containers, **more}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": spec,
    }


def job(
    name: str, *containers: Mapping[str, Any], labels: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Tried once."""
    made = pod(name, *containers, labels=labels, restartPolicy="Never", **more)
    template = {"metadata": made["metadata"], "spec": made["spec"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template},
    }
