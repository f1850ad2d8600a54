"""What NetworkPolicies say, without a cluster: which pod reaches which port of which pod."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from charts import RELEASE, Document, Rendered, selects

OUTSIDE = "outside"
"""Anybody who is no pod of the release."""


@dataclass(frozen=True)
class Pod:
    name: str
    labels: dict[str, str]
    ports: dict[str, int]  # by name


class Network:
    """The pods of a release, somebody outside, and the policies between them."""

    def __init__(self, chart: Rendered) -> None:
        self.policies = [one["spec"] for one in chart.kind("NetworkPolicy")]
        self.pods = {OUTSIDE: Pod(OUTSIDE, {}, {})}
        for name, pod in chart.pods():
            short = name.removeprefix(f"{RELEASE}-")
            ports = [port for one in pod["spec"]["containers"] for port in one.get("ports", [])]
            found = {port["name"]: port["containerPort"] for port in ports}
            self.pods[short] = Pod(short, pod["metadata"]["labels"], found)

    def arrows(self) -> set[tuple[str, str, str]]:
        """All that is open: from, to, the port's name."""
        return set(self._arrows())

    def _arrows(self) -> Iterator[tuple[str, str, str]]:
        for source in self.pods.values():
            for target in self.pods.values():
                for port in target.ports:
                    if source is not target and self.reaches(source, target, port):
                        yield source.name, target.name, port

    def reaches(self, source: Pod, target: Pod, port: str) -> bool:
        """Whether what leaves may leave, and what comes may come."""
        return self._allowed("Egress", source, target, target, port) and self._allowed(
            "Ingress", target, source, target, port
        )

    def _allowed(self, direction: str, whose: Pod, peer: Pod, target: Pod, port: str) -> bool:
        policies = [
            one
            for one in self.policies
            if direction in one["policyTypes"] and selects(one["podSelector"]["matchLabels"], whose.labels)
        ]
        if whose.name == OUTSIDE or not policies:
            return True
        key, peers = direction.lower(), "to" if direction == "Egress" else "from"
        rules = [rule for one in policies for rule in one.get(key) or []]
        return any(_peer(rule.get(peers), peer) and _port(rule.get("ports"), target, port) for rule in rules)


def _peer(peers: list[Document] | None, pod: Pod) -> bool:
    """Namespaces and addresses select nobody of the release."""
    if not peers:
        return True
    chosen = [one["podSelector"].get("matchLabels", {}) for one in peers if set(one) == {"podSelector"}]
    return any(selects(one, pod.labels) for one in chosen)


def _port(ports: list[dict[str, Any]] | None, target: Pod, name: str) -> bool:
    if not ports:
        return True
    return any(one["port"] in (name, target.ports[name]) and one.get("protocol", "TCP") == "TCP" for one in ports)
