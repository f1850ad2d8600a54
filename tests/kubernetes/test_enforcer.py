"""The cluster's NetworkPolicies decide: what they forbid fails with them, and works as soon as nobody enforces them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from cluster import HOST_ADDRESS, Cluster
from pods import container, job, pod
from waits import wait_until

WEB, OTHER = 8080, 8081
DNS = "dns"
Arrow = tuple[str, str]
"""From a pod to a pod's port (`web:8080`), its Service (`web service`), DNS or the API server."""

SERVER = f"httpd -p {OTHER} -h /bin; exec httpd -f -p {WEB} -h /bin"
FETCH = "timeout 1 wget -q -O /dev/null http://{}/busybox"


@dataclass(frozen=True)
class Town:
    """Pods `web`, `client` and `idle` in namespace `near`, `web` and `client` in `far`, called `far-web` here."""

    cluster: Cluster
    near: str
    far: str
    addresses: Mapping[str, str]
    targets: Mapping[str, str]
    """Target to the shell command that succeeds where it is reached."""

    def at(self, name: str) -> tuple[str, str]:
        return (self.far if name.startswith("far-") else self.near), name.removeprefix("far-")

    def open(self) -> set[Arrow]:
        """Every arrow that works right now, tried from inside the pods."""
        tries = " ".join(f"( {words} ) >/dev/null 2>&1 && echo '{target}' &" for target, words in self.targets.items())

        def tried(name: str) -> set[Arrow]:
            said = self.cluster.inside(*self.at(name), "sh", "-c", f"exec 2>/dev/null; {tries} wait")
            return {(name, target) for target in said.splitlines()}

        with ThreadPoolExecutor(2) as pool:
            return set().union(*pool.map(tried, self.addresses))

    @property
    def all(self) -> set[Arrow]:
        return {(name, target) for name in self.addresses for target in self.targets}

    def settles(self, expected: set[Arrow]) -> None:
        """Policies take effect within the tenth of a second, not at once."""
        found: list[set[Arrow]] = []

        def right() -> bool:
            found.append(self.open())
            return found[-1] == expected

        try:
            wait_until(right, "", 15)
        except TimeoutError:
            assert found[-1] == expected


def serving(name: str) -> list[dict[str, Any]]:
    ports = [{"name": "web", "containerPort": WEB}, {"name": "other", "containerPort": OTHER}]
    ready = {"httpGet": {"path": "/busybox", "port": WEB}, "periodSeconds": 1, "timeoutSeconds": 5}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "web"}]},
    }
    return [
        pod(name, container(["sh", "-c", SERVER], ports=ports, readinessProbe=ready), labels={"app": name}),
        service,
    ]


@pytest.fixture(scope="module")
def town(cluster: Cluster) -> Iterator[Town]:
    places = {"near": ("web", "client", "idle"), "far": ("web", "client")}
    with cluster.namespace() as near, cluster.namespace(team="friends") as far:
        addresses: dict[str, str] = {}
        targets: dict[str, str] = {}
        for place, namespace in (("near", near), ("far", far)):
            cluster.apply(*(one for name in places[place] for one in serving(name)), namespace=namespace)
        for place, namespace in (("near", near), ("far", far)):
            cluster.wait("condition=Ready", "pod", "--all", namespace=namespace)
            for name in places[place]:
                known = name if place == "near" else f"far-{name}"
                address = addresses[known] = cluster.get("pod", name, namespace)["status"]["podIP"]
                service = cluster.get("service", name, namespace)["spec"]["clusterIP"]
                targets |= {f"{known}:{port}": FETCH.format(f"{address}:{port}") for port in (WEB, OTHER)}
                targets[f"{known} service"] = FETCH.format(service)
        targets[DNS] = "timeout 1 nslookup kubernetes.default.svc.cluster.local 10.103.0.10"
        targets["api"] = "nc -w 1 10.103.0.1 443 </dev/null"
        yield Town(cluster, near, far, addresses, targets)


def policy(
    name: str,
    app: str | None = None,
    ingress: Sequence[Mapping[str, Any]] | None = None,
    egress: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """For the pods of an app, or all."""
    rules = {key: value for key, value in (("ingress", ingress), ("egress", egress)) if value is not None}
    selector = {} if app is None else {"matchLabels": {"app": app}}
    types = [key.capitalize() for key in rules]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": selector, "policyTypes": types, **rules},
    }


@contextmanager
def applied(town: Town, *policies: Mapping[str, Any]) -> Iterator[None]:
    town.cluster.apply(*policies, namespace=town.near)
    try:
        yield
    finally:
        town.cluster.kubectl("-n", town.near, "delete", "networkpolicy", "--all")


NOBODY = policy("nobody", ingress=[], egress=[])


def own(town: Town) -> set[Arrow]:
    """What is open whatever policies say: a pod to itself, and everything between pods that no policy selects."""
    near = {name for name in town.addresses if not name.startswith("far-")}
    return {
        (name, target)
        for name, target in town.all
        if target.partition(":")[0].partition(" ")[0] == name
        or (name not in near and target.partition(":")[0].partition(" ")[0] not in near)
    }


def app(name: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {"app": name}}}


def test_without_policies_everything_is_open(town: Town) -> None:
    town.settles(town.all)


def test_what_is_forbidden_works_as_soon_as_nobody_enforces_it(town: Town) -> None:
    with applied(town, NOBODY):
        town.settles(own(town))
        with town.cluster.policies_off():
            assert town.open() == town.all
        town.settles(own(town))
    town.settles(town.all)


def test_both_ends_have_to_agree(town: Town) -> None:
    takes = policy("web-takes", "web", ingress=[{"from": [app("client")], "ports": [{"port": WEB}]}])
    sends = policy("client-sends", "client", egress=[{"to": [app("web")], "ports": [{"port": WEB}]}])
    with applied(town, NOBODY, takes):
        town.settles(own(town))
    with applied(town, NOBODY, sends):
        town.settles(own(town))
    with applied(town, NOBODY, takes, sends):
        town.settles(own(town) | {("client", f"web:{WEB}"), ("client", "web service")})


def test_names_of_ports_and_labels_of_namespaces(town: Town) -> None:
    friends = {"namespaceSelector": {"matchLabels": {"team": "friends"}}}
    both = {**friends, **app("client")}
    takes = policy("takes", "web", ingress=[{"from": [both], "ports": [{"port": "web"}]}])
    sends = policy("sends", "idle", egress=[{"to": [friends], "ports": [{"port": "other"}]}])
    with applied(town, NOBODY, takes, sends):
        open_ = own(town) | {("far-client", f"web:{WEB}"), ("far-client", "web service")}
        open_ |= {("idle", f"far-{name}:{OTHER}") for name in ("web", "client")}
        town.settles(open_)
        town.cluster.kubectl("label", "namespace", town.far, "team=strangers", "--overwrite")
        town.settles(own(town))
        town.cluster.kubectl("label", "namespace", town.far, "team=friends", "--overwrite")
        town.settles(open_)


def test_a_pod_that_is_called_otherwise_is_somebody_else(town: Town) -> None:
    some = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["client", "idle"]}]}
    takes = policy("takes", "web", ingress=[{"from": [{"podSelector": some}]}])
    sends = policy("sends", "client", egress=[{}])
    outside = {(name, target) for name, target in town.all if name == "client" and target.startswith("far-")}
    outside |= {("client", DNS), ("client", "api")}
    reached = {("client", target) for target in (f"web:{WEB}", f"web:{OTHER}", "web service")}
    with applied(town, NOBODY, takes, sends):
        town.settles(own(town) | outside | reached)
        town.cluster.kubectl("-n", town.near, "label", "pod", "client", "role=visitor", "app-", "--overwrite")
        try:
            lost = {("client", "client service")}  # its Service has no pod any more
            town.settles(own(town) - lost)
        finally:
            town.cluster.kubectl("-n", town.near, "label", "pod", "client", "app=client", "role-", "--overwrite")
        town.settles(own(town) | outside | reached)


def test_blocks_of_addresses(town: Town) -> None:
    but = f"{town.addresses['far-web']}/32"
    pods = {"ipBlock": {"cidr": "10.102.0.0/24", "except": [but]}}
    api = {"ipBlock": {"cidr": "10.101.0.2/32"}}
    egress = [{"to": [pods], "ports": [{"port": WEB, "endPort": WEB}]}, {"to": [api], "ports": [{"port": 6443}]}]
    with applied(town, NOBODY, policy("sends", "idle", egress=egress)):
        reached = {("idle", f"far-client:{WEB}"), ("idle", "far-client service"), ("idle", "api")}
        town.settles(own(town) | reached)


def test_dns_alone(town: Town) -> None:
    resolver = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    ports = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    with applied(town, NOBODY, policy("dns", egress=[{"to": [resolver], "ports": ports}])):
        town.settles(own(town) | {(name, DNS) for name in ("web", "client", "idle")})


def test_who_comes_from_another_machine(town: Town) -> None:
    """This machine is one, for pods: it reaches them as long as they take from its address."""

    def reached() -> bool:
        try:
            socket.create_connection((town.addresses["web"], WEB), 1).close()
        except OSError:
            return False
        return True

    block = {"ipBlock": {"cidr": f"{HOST_ADDRESS}/32"}}
    wait_until(reached, "nothing is forbidden")
    with applied(town, NOBODY):
        wait_until(lambda: not reached(), "it is forbidden")
    with applied(town, NOBODY, policy("takes", "web", ingress=[{"from": [block]}])):
        wait_until(reached, "it is allowed")


def test_the_first_packet_of_a_new_pod_is_judged(town: Town) -> None:
    target = FETCH.format(f"{town.addresses['far-web']}:{WEB}")
    with applied(town, NOBODY, policy("sends", "allowed", egress=[{"to": [{"namespaceSelector": {}}]}])):
        town.settles(own(town))
        names = {f"{kind}-{number}": kind for kind in ("allowed", "forbidden") for number in range(4)}
        jobs = [
            job(name, container(["sh", "-c", target if kind == "allowed" else f"! {target}"]), labels={"app": kind})
            for name, kind in names.items()
        ]
        town.cluster.apply(*jobs, namespace=town.near)
        # A try that reaches what it may not is a Job that fails.
        town.cluster.wait("condition=Complete", *(f"job/{name}" for name in names), namespace=town.near)
        assert all(one["status"].get("succeeded") == 1 for one in town.cluster.items("job", town.near))


def test_probes_come_through(town: Town) -> None:
    """The node itself asks pods whether they are well; no policy forbids it that."""
    with applied(town, NOBODY):
        town.settles(own(town))
        town.cluster.apply(*serving("late"), namespace=town.near)
        town.cluster.wait("condition=Ready", "pod/late", namespace=town.near)
        town.cluster.kubectl("-n", town.near, "delete", "pod,service", "late", "--wait")
