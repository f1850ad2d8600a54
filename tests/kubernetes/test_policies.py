"""Each arrow of the chart's NetworkPolicies, tried from inside real pods: what is meant works, the rest is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from arrows import PROBE, PYTHON, Arrow
from built_images import name, version
from cluster import HOST_ADDRESS, NODE_ADDRESS, Cluster
from pods import container, pod
from releases import Release
from waits import wait_until

pytestmark = pytest.mark.timeout(1500)

LISTENS = {
    "superlink": (8000, 8001, 9091, 9092, 9093),
    "serverapp": (8001,),
    "supernode-one": (8001, 9094),
    "supernode-two": (8001, 9094),
    "clientapp-one": (8001,),
    "clientapp-two": (8001,),
    "outside": (38001,),  # another machine
    "api": (6443,),
}
"""Where something answers: Trellis's ports, and what pods shall not reach without having been told to."""
STRANGERS = ("neighbour", "visitor")
"""Pods that the chart did not make: in its namespace, and in another."""
SOURCES = (*(name for name in LISTENS if name not in ("outside", "api")), *STRANGERS)
ROWS = [
    (source, target, port) for source in SOURCES for target in LISTENS if source != target for port in LISTENS[target]
]
MEANT: set[Arrow] = {
    *((f"clientapp-{site}", f"supernode-{site}", 9094) for site in ("one", "two")),
    *((f"supernode-{site}", "superlink", port) for site in ("one", "two") for port in (9092, 8000)),
    ("serverapp", "superlink", 9091),
    # Users and SuperNodes come from anywhere, unless networkPolicy.control.from and .fleet.from say whence.
    *((stranger, "superlink", port) for stranger in STRANGERS for port in (9093, 9092, 8000)),
    # Where other pods go is not the chart's affair.
    *((stranger, *target) for stranger in STRANGERS for target in (("outside", 38001), ("api", 6443))),
}


@dataclass(frozen=True)
class Reached:
    enforced: set[Arrow]
    free: set[Arrow]
    """With nobody who enforces policies."""


@pytest.fixture(scope="module")
def reached(minimal: Release) -> Iterator[Reached]:
    cluster = minimal.cluster
    with cluster.namespace() as elsewhere, socket.create_server((HOST_ADDRESS, 38001), backlog=100):
        idle = container(["sleep", "3600"], f"{name('cli')}:{version()}")
        pods: dict[str, tuple[str, str]] = {}
        for stranger, namespace in zip(STRANGERS, (minimal.namespace, elsewhere), strict=True):
            cluster.apply(pod(stranger, idle), namespace=namespace)
            pods[stranger] = (namespace, stranger)
        for stranger in STRANGERS:
            cluster.wait("condition=Ready", f"pod/{stranger}", namespace=pods[stranger][0])
        for role in SOURCES[: -len(STRANGERS)]:
            component, _, site = role.partition("-")
            (one,) = wait_until(lambda c=component, s=site: minimal.pods(c, s), f"{role} is there")  # type: ignore[misc]
            pods[role] = (minimal.namespace, one)
        addresses = {
            role: cluster.get("pod", one, namespace)["status"]["podIP"] for role, (namespace, one) in pods.items()
        }
        addresses |= {"outside": HOST_ADDRESS, "api": NODE_ADDRESS}
        enforced = tried(cluster, pods, addresses)
        with cluster.policies_off():
            free = tried(cluster, pods, addresses)
        yield Reached(enforced, free)
        cluster.kubectl("-n", minimal.namespace, "delete", "pod", STRANGERS[0], "--wait=false")


def tried(cluster: Cluster, pods: dict[str, tuple[str, str]], addresses: dict[str, str]) -> set[Arrow]:
    """Every row that takes a connection."""

    def from_(source: str) -> set[Arrow]:
        rows = [row for row in ROWS if row[0] == source]
        targets = [f"{addresses[target]}:{port}" for _, target, port in rows]
        said = cluster.inside(*pods[source], PYTHON, "-I", "-c", PROBE, *targets)
        answers = json.loads(said.splitlines()[-1])
        return {row for row, good in zip(rows, answers, strict=True) if good}

    with ThreadPoolExecutor(2) as pool:
        return set().union(*pool.map(from_, SOURCES))


@pytest.mark.parametrize(("source", "target", "port"), ROWS)
def test_arrow(reached: Reached, source: str, target: str, port: int) -> None:
    arrow = (source, target, port)
    assert (arrow in reached.enforced) == (arrow in MEANT)


def test_it_is_the_policies_that_refuse(reached: Reached) -> None:
    """Where nobody enforces them, each arrow of the table works: at every one of these ports somebody listens."""
    assert reached.free == set(ROWS)
