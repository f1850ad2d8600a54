"""The cluster's life: it starts, and whatever becomes of who started it, it ends with it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import IO, Any

from commands import CommandFailed, command
from pki import Authority
from waits import wait_until

from cluster.api import Api
from cluster.binaries import binaries
from cluster.images import own_images
from cluster.layout import API, CABLE, CGROUP, HOST_ADDRESS, LINK, NODE, NODE_ADDRESS, PODS, SERVICES, State
from cluster.machine import refuse_unfit

_VOLUMES = 40
"""PersistentVolumes that it has to give; each is given once."""


class ClusterProblem(Exception):
    """The cluster did not start or ended early; says why."""


class Cluster(Api):
    """`with Cluster.running() as cluster:`, in the thread that lives as long as it shall."""

    def __init__(self, state: State | None = None) -> None:
        super().__init__(state or State(), binaries())
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Cluster]:
        cluster = cls()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()

    def start(self) -> None:
        """Returns when the node and DNS are ready."""
        refuse_unfit()
        self._lock = _hold(self.state.lock)
        self._clean()  # what a test run left that was killed
        for folder in (self.state.logs, self.state.volumes):
            folder.mkdir(parents=True)
        self._write_credentials()
        for controller in _controllers():
            (controller / CGROUP).mkdir(exist_ok=True)
        self._process = self._spawn()
        try:
            self._connect(wait_until(self._first_process, "the node's namespaces are there"))
            self._fill()
        except (TimeoutError, CommandFailed, subprocess.CalledProcessError) as problem:
            raise ClusterProblem(f"The cluster did not start: {problem}\n{self._ends_of_logs()}") from problem

    def stop(self) -> None:
        """Everything in it ends with its first process; its files go after that."""
        if self._process is not None:
            if (first := self._first_process()) is not None:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(first, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait()
            self._process = None
        if self._lock is not None:
            self._clean()
            self._lock.close()
            self._lock = None

    @contextmanager
    def policies_off(self) -> Iterator[None]:
        """As if nobody enforced NetworkPolicies."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        """The kernel kills `unshare` when this thread ends, and with it the node's first process."""
        inside = (sys.executable, "-m", "cluster.inside", str(self.state.folder), str(self.binaries))
        apart = ("unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--net", "--ipc", "--uts")
        path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with (self.state.logs / "node.log").open("wb") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *apart, *inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=keep | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the starter
            )

    def _first_process(self) -> int | None:
        """Its number out here; None before it is there and after it has ended."""
        assert self._process is not None
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:
            return None
        return int(children[0]) if children else None

    def _connect(self, first: int) -> None:
        """A cable between this machine and the node, and the way to its pods and Services."""
        wait_until(lambda: os.readlink(f"/proc/{first}/ns/net") != os.readlink("/proc/self/ns/net"), "it has a network")
        for words in (
            ("link", "add", CABLE, "type", "veth", "peer", "name", "eth0", "netns", str(first)),
            ("address", "add", f"{HOST_ADDRESS}/{LINK}", "dev", CABLE),
            ("link", "set", CABLE, "up"),
            ("route", "replace", PODS, "via", NODE_ADDRESS),
            ("route", "replace", SERVICES, "via", NODE_ADDRESS),
        ):
            command("ip", *words)

    def _fill(self) -> None:
        wait_until(lambda: self._runs() and self.state.containerd.exists(), "containerd listens")
        for image in own_images(self.binaries / "coredns"):
            self.load_archive(image.archive())
        wait_until(
            lambda: self._runs() and "ok" in self.kubectl("get", "--raw=/readyz", check=False),
            "the API server is ready",
        )
        self.kubectl("apply", "-f", str(Path(__file__).with_name("addons.yaml")))
        self.apply(*(self._volume(number) for number in range(1, _VOLUMES + 1)))
        wait_until(lambda: self._runs() and self.items("node"), "the node is there")
        self.wait("condition=Ready", f"node/{NODE}")
        self.kubectl("-n", "kube-system", "rollout", "status", "deployment/dns", "--timeout=60s")

    def _runs(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise TimeoutError("its first process has ended")
        return True

    def _ready(self) -> bool:
        return self.kubectl("get", "--raw=/readyz", check=False).strip() == "ok"

    def _volume(self, number: int) -> dict[str, Any]:
        """A `local` volume: these, unlike hostPath ones, are handed to the group that a pod asks for."""
        path = self.state.volumes / str(number)
        path.mkdir()
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{number}"},
            "spec": {
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "storageClassName": "standard",
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        }

    def _write_credentials(self) -> None:
        authority = Authority(self.state.pki, "ca")
        names = (str(ip_network(SERVICES)[1]), "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
        authority.server("api", (NODE_ADDRESS, *names))
        authority.client("api-server")
        authority.server("kubelet", (NODE, NODE_ADDRESS))
        authority.server("accounts")  # its key signs the tokens of service accounts
        token = secrets.token_urlsafe(24)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": NODE,
            "contexts": [{"name": NODE, "context": {"cluster": NODE, "user": "admin"}}],
            "clusters": [{"name": NODE, "cluster": {"server": API, "certificate-authority": str(authority.certfile)}}],
            "users": [{"name": "admin", "user": {"token": token}}],
        }
        for path, text in (
            (self.state.token, token),
            (self.state.tokens, f'{token},admin,admin,"system:masters"\n'),
            (self.state.kubeconfig, json.dumps(config)),
        ):
            path.touch(0o600)
            path.write_text(text)

    def _switch(self, on: bool) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.state.enforcer))
            connection.sendall(json.dumps({"do": "switch", "on": on}).encode() + b"\n")
            answer = connection.recv(1000)
        assert answer == b"ok\n", answer

    def _clean(self) -> None:
        """Cable, cgroups and files. The kernel takes a moment to let go of the last process."""
        if CABLE in {name for _, name in socket.if_nameindex()}:
            command("ip", "link", "delete", CABLE, check=False)  # a namespace that has ended lets go of it late
        wait_until(lambda: CABLE not in {name for _, name in socket.if_nameindex()}, f"the interface {CABLE} is gone")
        for controller in _controllers():
            for folder, _, _ in os.walk(controller / CGROUP, topdown=False):
                wait_until(lambda folder=Path(folder): _removed(folder), f"{folder} is empty")  # type: ignore[misc]
        if self.state.folder.exists():
            shutil.rmtree(self.state.folder)

    def _ends_of_logs(self) -> str:
        ends = {path.name: path.read_text(errors="replace")[-1500:] for path in sorted(self.state.logs.glob("*.log"))}
        return "\n".join(f"---- {name}\n{end}" for name, end in ends.items())


def _hold(lock: Path) -> IO[str]:
    held = lock.open("a+")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.seek(0)
        whose = held.read().strip()
        held.close()
        raise ClusterProblem(f"Process {whose} has the cluster, and a machine has one: wait until it ends.") from None
    held.truncate(0)
    held.write(str(os.getpid()))
    held.flush()
    return held


def _controllers() -> list[Path]:
    """Where cgroups are made: in each controller's tree (cgroup v1), or in the one tree (v2)."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
