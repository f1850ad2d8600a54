"""What the machine has to have, and how it gets it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_PACKAGES: Mapping[str, str] = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "ip": "iproute2",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/bin/busybox": "busybox-static",
}
"""What the node runs besides Kubernetes' own programs, and the Debian packages that bring it."""


class UnfitMachine(Exception):
    """Says what is needed."""


def missing() -> list[str]:
    """The Debian packages that are not there."""
    return [package for program, package in _PACKAGES.items() if shutil.which(program) is None]


def refuse_unfit() -> None:
    """UnfitMachine where the cluster cannot run."""
    if os.geteuid() != 0:
        raise UnfitMachine("The tests on Kubernetes make network namespaces and mounts: run them as root, on Linux.")
    if lacking := missing():
        raise UnfitMachine(f"The tests on Kubernetes need {', '.join(lacking)}: make test installs them.")
    if not _bridges_are_filtered():
        raise UnfitMachine("The tests on Kubernetes need the kernel module br_netfilter: modprobe br_netfilter.")


def prepare() -> None:
    """Installs what is missing, on Debian and Ubuntu."""
    if os.geteuid() != 0:
        raise UnfitMachine("The tests on Kubernetes make network namespaces and mounts: run them as root, on Linux.")
    if lacking := missing():
        if shutil.which("apt-get") is None:
            raise UnfitMachine(f"The tests on Kubernetes need {', '.join(lacking)} (so they are called on Debian).")
        print(f"Installing {' '.join(lacking)} ...", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        quiet = ("-y", "-qq", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends")
        for argv in (("apt-get", "update", "-qq"), ("apt-get", "install", *quiet, *lacking)):
            subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, check=True)
    if not _bridges_are_filtered():
        subprocess.run(["modprobe", "br_netfilter"], check=False)
    refuse_unfit()


def _bridges_are_filtered() -> bool:
    return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
