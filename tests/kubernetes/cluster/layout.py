"""Where the cluster is: its folder, its addresses, its names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

NODE: Final = "node"
HOST_ADDRESS: Final = "10.101.0.1"
"""This machine's end of the cable to the node. For pods it is `outside`: another machine."""
NODE_ADDRESS: Final = "10.101.0.2"
LINK: Final = 30
PODS: Final = "10.102.0.0/24"
SERVICES: Final = "10.103.0.0/16"
DNS: Final = "10.103.0.10"
API: Final = f"https://{NODE_ADDRESS}:6443"
CABLE: Final = "trellis-node"
"""The interface on this machine."""
CGROUP: Final = "trellis-cluster"

PAUSE: Final = "docker.io/trellis-test/pause:1"
BUSYBOX: Final = "docker.io/trellis-test/busybox:1"
COREDNS: Final = "docker.io/trellis-test/coredns:1"


@dataclass(frozen=True)
class State:
    """The files of a running cluster; thrown away when it ends. One per machine: addresses and cgroups are fixed."""

    folder: Path = Path("/var/tmp/trellis-cluster")

    @property
    def lock(self) -> Path:
        """Held by whoever has the cluster; outlives it."""
        return self.folder.with_name(self.folder.name + ".lock")

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig.json"

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def tokens(self) -> Path:
        """The API server's list of them."""
        return self.folder / "tokens.csv"

    @property
    def containerd(self) -> Path:
        """containerd's socket."""
        return self.folder / "containerd.sock"

    @property
    def enforcer(self) -> Path:
        """The socket of who enforces NetworkPolicies."""
        return self.folder / "netpol.sock"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def volumes(self) -> Path:
        """What PersistentVolumes hold."""
        return self.folder / "volumes"
