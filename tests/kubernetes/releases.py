"""The chart installed on the cluster, by helm."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import charts
from built_images import name, version
from charts import CHART
from cluster import Cluster, CommandFailed
from commands import command
from pods import container, job
from waits import wait_until

FIRST = Path(__file__).parent / "fixtures" / "trellis-0.1.0.tgz"
"""The chart as it was first merged."""
READY_SECONDS = 150
"""What an installation gets; a busy machine takes a minute and more."""
DIGITS = {f"{role}.image.repository": name(f"{role}-digits") for role in ("serverapp", "clientapp")}
"""Executors that have what examples/digits imports."""


def helm(*words: str, timeout: float = 240) -> str:
    """Both outputs of a helm command."""
    return command(charts.helm(), *words, timeout=timeout)


@dataclass(frozen=True)
class Release:
    """An installation; `sets` are values over those of the scenario (a file in the chart's ci/)."""

    cluster: Cluster
    namespace: str
    scenario: str
    sets: Mapping[str, str]
    name: str = "net"
    seconds: int = READY_SECONDS

    def install(self, chart: Path = CHART) -> None:
        self._change("install", chart)

    def upgrade(self, more: Mapping[str, str]) -> None:
        """To the chart as it is, with more values."""
        replace(self, sets={**self.sets, **more})._change("upgrade", CHART)

    def rollback(self, revision: int) -> None:
        self._told("rollback", self.name, str(revision), "--wait", f"--timeout={self.seconds}s")

    def uninstall(self) -> None:
        """Returns when its pods have ended, which helm itself does not wait for."""
        self._told("uninstall", self.name, "--wait", "--timeout=150s")
        ours = f"app.kubernetes.io/instance={self.name}"
        wait_until(lambda: not self.cluster.items("pod", self.namespace, ours), "its pods have ended", 120)

    def test(self) -> str:
        """`helm test`, and what its pod wrote."""
        return self._told("test", self.name, "--logs", "--timeout=240s", timeout=300)

    def pods(self, component: str, site: str = "") -> list[str]:
        """Names of a role's pods that are not ending."""
        found = self.all_pods(component, site)
        return [one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]]

    def all_pods(self, component: str, site: str = "") -> list[Any]:
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        return self.cluster.items("pod", self.namespace, labels + (f",trellis/site={site}" if site else ""))

    def service(self, role: str) -> str:
        """A Service's address in the cluster; from this machine it can be reached, too."""
        return str(self.cluster.get("service", f"{self.name}-{role}", self.namespace)["spec"]["clusterIP"])

    def secret(self, name: str, key: str) -> bytes:
        return b64decode(self.cluster.get("secret", f"{self.name}-{name}", self.namespace)["data"][key])

    def _change(self, verb: str, chart: Path) -> None:
        values = [word for key, value in self.sets.items() for word in ("--set-string", f"{key}={value}")]
        values += ["-f", str(CHART / "ci" / f"{self.scenario}-values.yaml")]
        patience = ("--wait", f"--timeout={self.seconds}s")
        self._told(verb, self.name, str(chart), *values, *patience, timeout=self.seconds + 60)

    def _told(self, *words: str, timeout: float = 240) -> str:
        where = ("--kubeconfig", str(self.cluster.state.kubeconfig), "--namespace", self.namespace)
        try:
            return helm(*where, *words, timeout=timeout)
        except CommandFailed as failed:
            raise CommandFailed(f"{failed}\n{self.cluster.story(self.namespace)}") from None


def is_ready(pod: Any) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def left_in(cluster: Cluster, namespace: str) -> set[str]:
    """Everything in a namespace but what the cluster itself writes about the rest: `secret/net-superlink-tls`."""
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    told = ("events", "endpoints", "endpointslices", "pods.metrics.k8s.io", "controllerrevisions")
    wanted = ",".join(kind for kind in kinds if kind.partition(".")[0] not in told)
    found = cluster.kubectl("-n", namespace, "get", wanted, "-o", "name", "--ignore-not-found").split()
    return set(found)


def app_files(app: Path) -> dict[str, str]:
    """The text files of an app's folder, by their paths in it."""
    found = (path for path in sorted(app.rglob("*")) if path.is_file() and path.suffix in (".py", ".toml"))
    return {str(path.relative_to(app)): path.read_text() for path in found}


def cli_job(name_: str, app: Path, *words: str) -> list[dict[str, Any]]:
    """A Job in which our command line's image has an app in /app, and the ConfigMap that the app is in."""
    files = {path.replace("/", "."): (path, text) for path, text in app_files(app).items()}
    data = {key: text for key, (_, text) in files.items()}
    mounts = [
        *({"name": "app", "mountPath": f"/app/{path}", "subPath": key} for key, (path, _) in files.items()),
        {"name": "home", "mountPath": "/var/lib/flwr"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    cli = container(None, f"{name('cli')}:{version()}", args=list(words), volumeMounts=mounts, imagePullPolicy="Never")
    volumes = [
        {"name": "app", "configMap": {"name": name_}},
        {"name": "home", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name_}, "data": data}
    return [config, job(name_, cli, volumes=volumes, securityContext={"fsGroup": 49999})]
