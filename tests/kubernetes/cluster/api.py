"""What tests do with a cluster that runs."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import CommandFailed, command
from waits import wait_until

from cluster.layout import State


class Api:
    """The cluster by its API server and its containerd."""

    def __init__(self, state: State, binaries: Path) -> None:
        self.state = state
        self.binaries = binaries

    def kubectl(
        self, *words: str, input: str | None = None, timeout: float = 240, check: bool = True, errors: bool = True
    ) -> str:
        argv = (str(self.binaries / "hyperkube"), "kubectl", "--kubeconfig", str(self.state.kubeconfig), *words)
        return command(*argv, input=input or "", timeout=timeout, check=check, errors=errors)

    def get(self, kind: str, name: str, namespace: str = "default") -> Any:
        """An object as the API has it."""
        return json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json", errors=False))

    def items(self, kind: str, namespace: str = "default", labels: str = "") -> list[Any]:
        """All objects of a kind, or those with these labels (`a=b,c=d`)."""
        chosen = ("-l", labels) if labels else ()
        listed = self.kubectl("-n", namespace, "get", kind, *chosen, "-o", "json", errors=False)
        found: list[Any] = json.loads(listed)["items"]
        return found

    def apply(self, *objects: Mapping[str, Any], namespace: str = "default") -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(listed))

    def wait(self, condition: str, *what: str, namespace: str = "default", seconds: float = 60) -> None:
        """`kubectl wait --for=<condition>`; CommandFailed with the pods' logs where it does not come about."""
        words = ("wait", f"--for={condition}", f"--timeout={seconds:g}s", *what)
        try:
            self.kubectl("-n", namespace, *words, timeout=seconds + 30)
        except CommandFailed as failed:
            raise CommandFailed(f"{failed}\n{self.story(namespace)}") from None

    def inside(self, namespace: str, pod: str, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """What a program says that is started in a pod's first container; kubectl's own remarks are not of it."""
        return self.kubectl("-n", namespace, "exec", pod, "--", *argv, check=check, timeout=timeout, errors=False)

    def logs(self, namespace: str, pod: str) -> str:
        return self.kubectl("-n", namespace, "logs", pod, "--all-containers", check=False)

    @contextmanager
    def namespace(self, **labels: str) -> Iterator[str]:
        """A new namespace, under Pod Security `restricted` unless told otherwise; on its way out afterwards."""
        name = f"test-{uuid.uuid4().hex[:6]}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"} | labels
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        try:
            wait_until(lambda: self.items("serviceaccount", name), f"{name} has its service account")
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    def story(self, namespace: str) -> str:
        """For whoever reads of a failure: pods, events and the end of each log."""
        parts = [self.kubectl("-n", namespace, "get", "pods,jobs,pvc", "-o", "wide", check=False)]
        parts.append(self.kubectl("-n", namespace, "get", "events", "--sort-by=.lastTimestamp", check=False)[-6000:])
        for pod in self.items("pod", namespace):
            name = pod["metadata"]["name"]
            said = self.kubectl("-n", namespace, "logs", name, "--all-containers", "--tail=40", check=False)
            parts.append(f"---- {name}\n{said[-4000:]}")
        return "\n".join(parts)

    def load_images(self, *names: str) -> None:
        """Images of the Docker engine, under the same names; layers that they share go over once."""
        with subprocess.Popen(["docker", "save", *names], stdout=subprocess.PIPE) as saved:
            done = subprocess.run(self._import, stdin=saved.stdout, capture_output=True, text=True)
        if done.returncode != 0 or saved.returncode != 0:
            raise CommandFailed(f"{', '.join(names)} could not be loaded: {done.stdout}{done.stderr}")

    def load_archive(self, archive: bytes) -> None:
        subprocess.run(self._import, input=archive, capture_output=True, check=True)

    @property
    def _import(self) -> list[str]:
        return ["ctr", "--address", str(self.state.containerd), "--namespace", "k8s.io", "images", "import", "-"]
