"""The cluster's first process, in namespaces of its own (processes, mounts, network): starts the rest.

`python -m cluster.inside FOLDER BINARIES`. When it ends, by whatever signal, the kernel ends everything in here and
takes the mounts and the network away.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands import command
from waits import wait_until

from cluster.layout import API, CGROUP, DNS, LINK, NODE, NODE_ADDRESS, PAUSE, PODS, SERVICES, State

_PLUGINS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
# kubelet wants to set these, which are the whole machine's; in here it sets copies.
_MACHINES = {
    "vm": ("overcommit_memory", "panic_on_oom"),
    "kernel": ("panic", "panic_on_oops", "keys/root_maxkeys", "keys/root_maxbytes"),
}


class Node:
    """What runs on the one node."""

    def __init__(self, state: State, binaries: Path) -> None:
        self._state = state
        self._kubernetes = str(binaries / "hyperkube")
        self._started: dict[int, str] = {}

    def prepare(self) -> None:
        """The machine as the programs below want to find it, without touching the one outside."""
        command("mount", "-t", "tmpfs", "tmpfs", "/run")
        for name in (f"{part}/{name}" for part, names in _MACHINES.items() for name in names):
            real = Path("/proc/sys") / name
            copy = self._state.folder / "sysctl" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(real.read_text())
            command("mount", "--bind", str(copy), str(real))
        wait_until(lambda: "eth0" in {name for _, name in socket.if_nameindex()}, "the cable is there")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{NODE_ADDRESS}/{LINK}", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            command("ip", *words)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def run(self) -> int:
        """Returns when one of them has ended, which none should."""
        state = self._state
        self._etcd()
        self._api_server()
        self._containerd()
        wait_until(lambda: state.containerd.exists(), "containerd listens")
        wait_until(self._served, "the API server is ready")
        self._control_plane()
        self._kubelet()
        while True:
            pid, status = os.wait()  # also those that lost their parents, as the first process has to
            if pid in self._started:
                print(f"{self._started[pid]} ended with {os.waitstatus_to_exitcode(status)}", flush=True)
                return 1

    def _start(self, name: str, *argv: str) -> None:
        with (self._state.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._state.folder)
        self._started[process.pid] = name

    def _kube(self, name: str, **flags: object) -> None:
        self._start(
            name, self._kubernetes, name, *(f"--{key.replace('_', '-')}={value}" for key, value in flags.items())
        )

    def _etcd(self) -> None:
        self._kube(
            "etcd",
            data_dir=self._state.folder / "etcd",
            listen_client_urls="http://127.0.0.1:2379",
            advertise_client_urls="http://127.0.0.1:2379",
            listen_peer_urls="http://127.0.0.1:2380",
            unsafe_no_fsync="true",  # nothing in here outlives the cluster
            log_level="warn",
        )

    def _api_server(self) -> None:
        pki = self._state.pki
        self._kube(
            "kube-apiserver",
            etcd_servers="http://127.0.0.1:2379",
            advertise_address=NODE_ADDRESS,
            service_cluster_ip_range=SERVICES,
            tls_cert_file=pki / "api.crt",
            tls_private_key_file=pki / "api.key",
            token_auth_file=self._state.tokens,
            authorization_mode="Node,RBAC",
            allow_privileged="true",
            kubelet_certificate_authority=pki / "ca.crt",
            kubelet_client_certificate=pki / "api-server.crt",
            kubelet_client_key=pki / "api-server.key",
            kubelet_preferred_address_types="InternalIP",
            service_account_issuer="https://kubernetes.default.svc.cluster.local",
            service_account_key_file=pki / "accounts.crt",
            service_account_signing_key_file=pki / "accounts.key",
            profiling="false",
        )

    def _control_plane(self) -> None:
        kubeconfig, pki = self._state.kubeconfig, self._state.pki
        self._kube(
            "kube-controller-manager",
            kubeconfig=kubeconfig,
            leader_elect="false",
            root_ca_file=pki / "ca.crt",
            service_account_private_key_file=pki / "accounts.key",
            use_service_account_credentials="true",
            profiling="false",
        )
        self._kube("kube-scheduler", kubeconfig=kubeconfig, leader_elect="false", profiling="false")
        self._kube(
            "kube-proxy",
            config=self._write(
                "kube-proxy.json",
                {
                    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                    "kind": "KubeProxyConfiguration",
                    "mode": "iptables",
                    "clusterCIDR": PODS,
                    "hostnameOverride": NODE,
                    "clientConnection": {"kubeconfig": str(kubeconfig)},
                    # The machine's own connection table stays as it is.
                    "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
                },
            ),
        )
        self._start("enforcer", sys.executable, "-m", "cluster.enforcer", str(self._state.folder))

    def _containerd(self) -> None:
        folder = self._state.folder
        plugins = folder / "cni-plugins"
        plugins.mkdir()
        found = next((one for one in _PLUGINS if one.is_dir()), _PLUGINS[0])
        for plugin in found.iterdir():
            (plugins / plugin.name).symlink_to(plugin)
        ours = plugins / "trellis-netpol"
        ours.write_text(f"#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).with_name('cni.py')}\n")
        ours.chmod(0o755)
        (folder / "cni").mkdir()
        bridge = {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(folder / "cni-addresses"),
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        chain = [
            bridge,
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "trellis-netpol", "socket": str(self._state.enforcer)},
        ]
        self._write("cni/10-pods.conflist", {"cniVersion": "0.4.0", "name": "pods", "plugins": chain})
        config = folder / "containerd.toml"
        config.write_text(_CONTAINERD.format(folder=folder, socket=self._state.containerd, pause=PAUSE))
        self._start("containerd", "containerd", "--config", str(config))

    def _kubelet(self) -> None:
        folder, pki = self._state.folder, self._state.pki
        resolv = folder / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.1\n")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self._state.containerd}",
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(pki / "ca.crt")}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / "kubelet.crt"),
            "tlsPrivateKeyFile": str(pki / "kubelet.key"),
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}",
            "failSwapOn": False,
            "resolvConf": str(resolv),
            "podLogsDir": str(self._state.logs / "pods"),
            # Images come by `load_image` and stay; the disk is the machine's affair.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "syncFrequency": "10s",
        }
        self._kube(
            "kubelet",
            config=self._write("kubelet.json", config),
            kubeconfig=self._state.kubeconfig,
            hostname_override=NODE,
            node_ip=NODE_ADDRESS,
            root_dir=folder / "kubelet",
            cert_dir=pki,
        )

    def _write(self, name: str, config: Mapping[str, Any]) -> Path:
        """JSON is YAML."""
        path = self._state.folder / name
        path.write_text(json.dumps(config))
        return path

    def _served(self) -> bool:
        context = ssl.create_default_context(cafile=str(self._state.pki / "ca.crt"))
        token = {"Authorization": f"Bearer {self._state.token.read_text()}"}
        asked = urllib.request.Request(f"{API}/readyz", headers=token)
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(asked, timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False


# Without restrict_oom_score_adj, runc fails where it may not raise its own standing with the OOM killer.
_CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "/run/trellis-containerd"
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{folder}/cni-plugins"
  conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def main() -> int:
    node = Node(State(Path(sys.argv[1])), Path(sys.argv[2]))
    node.prepare()
    return node.run()


if __name__ == "__main__":
    sys.exit(main())
