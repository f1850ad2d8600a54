"""A Kubernetes of one node for tests: real control plane, real pods, NetworkPolicies that are enforced.

All of it lives in namespaces of its own (processes, mounts, network) that end with whoever started it, however that
ends: nothing is left running. `make cluster` starts one by hand; tests have the fixture `cluster`.
"""

from commands import CommandFailed

from cluster.binaries import MissingBinaries
from cluster.cluster import Cluster, ClusterProblem
from cluster.layout import BUSYBOX, HOST_ADDRESS, NODE_ADDRESS
from cluster.machine import UnfitMachine

__all__ = [
    "BUSYBOX",
    "HOST_ADDRESS",
    "NODE_ADDRESS",
    "Cluster",
    "ClusterProblem",
    "CommandFailed",
    "MissingBinaries",
    "UnfitMachine",
    "until",
]
