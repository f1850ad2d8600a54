"""NetworkPolicies (networking.k8s.io/v1, IPv4) as one nftables table: what each pod may say to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

TABLE = "trellis_netpol"
Labels = Mapping[str, str]
Direction = Literal["Ingress", "Egress"]

_PEERS: Mapping[Direction, str] = {"Ingress": "from", "Egress": "to"}
_OTHER_END: Mapping[Direction, str] = {"Ingress": "ip saddr", "Egress": "ip daddr"}


@dataclass(frozen=True)
class Pod:
    """What policies know about a pod. `ports` are the named ones: (name, protocol) to number."""

    namespace: str
    name: str
    address: str
    labels: Labels
    ports: Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class World:
    """Everything that the rules follow from; `policies` are the API's objects."""

    pods: Sequence[Pod]
    namespaces: Mapping[str, Labels]
    policies: Sequence[Mapping[str, Any]]

    def selecting(self, pod: Pod, direction: Direction) -> list[Mapping[str, Any]]:
        """The policies by which a pod takes (or sends) only what one of them allows."""
        return [
            policy
            for policy in self.policies
            if policy["metadata"]["namespace"] == pod.namespace
            and direction in _directions(policy["spec"])
            and matches(policy["spec"]["podSelector"], pod.labels)
        ]

    def peers(self, namespace: str, peer: Mapping[str, Any]) -> list[Pod]:
        """The pods that a peer of a policy in this namespace means."""
        found = []
        for pod in self.pods:
            if "namespaceSelector" in peer:
                near = matches(peer["namespaceSelector"], self.namespaces.get(pod.namespace, {}))
            else:
                near = pod.namespace == namespace
            if near and matches(peer.get("podSelector", {}), pod.labels):
                found.append(pod)
        return found


def matches(selector: Mapping[str, Any], labels: Labels) -> bool:
    """Whether a label selector means whoever has these labels; an empty one means everybody."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions", ()))


def _holds(expression: Mapping[str, Any], labels: Labels) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"No label selector has the operator {other}")


def _directions(spec: Mapping[str, Any]) -> Sequence[str]:
    return spec.get("policyTypes") or ("Ingress", *(("Egress",) if spec.get("egress") else ()))


def ruleset(world: World) -> str:
    """The table, as `nft -f` takes it, in place of the one that is there."""
    chains: list[str] = []
    jumps: dict[Direction, list[str]] = {"Ingress": [], "Egress": []}
    for pod in sorted(world.pods, key=lambda one: one.address):
        for direction in jumps:
            selecting = world.selecting(pod, direction)
            if not selecting:
                continue  # not isolated in this direction
            name = f"{direction.lower()}_{pod.address.replace('.', '_')}"
            # A pod always reaches itself, also through a Service.
            conditions = [f"{_OTHER_END[direction]} {pod.address}"]
            conditions += (one for policy in selecting for one in _allowed(world, policy, pod, direction))
            lines = (f"  {' '.join((one, 'return')).strip()}\n" for one in dict.fromkeys(conditions))
            chains.append(f"chain {name} {{\n{''.join(lines)}  counter drop\n}}")
            jumps[direction].append(f"{pod.address} : jump {name}")
    # Replies come by. What a pod sends is judged at its end, what it gets at the other; a policy that is new judges
    # connections that are new.
    return "\n".join(
        (
            f"table ip {TABLE} {{}}",
            f"delete table ip {TABLE}",
            f"table ip {TABLE} {{",
            *chains,
            _map("sending", jumps["Egress"]),
            _map("getting", jumps["Ingress"]),
            "chain forward {\n  type filter hook forward priority filter; policy accept;",
            "  ct state established,related accept\n  ip saddr vmap @sending\n  ip daddr vmap @getting\n}",
            # To the node itself, the API server for one. What the node sends (probes) no policy judges.
            "chain input {\n  type filter hook input priority filter; policy accept;",
            "  ct state established,related accept\n  ip saddr vmap @sending\n}",
            "}\n",
        )
    )


def no_rules() -> str:
    """Takes the table away, if it is there."""
    return f"table ip {TABLE} {{}}\ndelete table ip {TABLE}\n"


def _map(name: str, elements: Sequence[str]) -> str:
    filled = f" elements = {{ {', '.join(elements)} }};" if elements else ""
    return f"map {name} {{ type ipv4_addr : verdict;{filled} }}"


def _allowed(world: World, policy: Mapping[str, Any], pod: Pod, direction: Direction) -> Iterator[str]:
    """One condition for each peer and port that a policy lets through."""
    for rule in policy["spec"].get(direction.lower(), ()):
        for end in _ends(world, policy["metadata"]["namespace"], rule.get(_PEERS[direction]), _OTHER_END[direction]):
            for port in _ports(rule.get("ports"), (pod,) if direction == "Ingress" else world.pods):
                yield f"{end} {port}"


def _ends(world: World, namespace: str, peers: Sequence[Mapping[str, Any]] | None, field: str) -> Iterator[str]:
    if not peers:
        yield ""  # everybody
        return
    for peer in peers:
        if block := peer.get("ipBlock"):
            parts = [] if block["cidr"] == "0.0.0.0/0" else [f"{field} {block['cidr']}"]
            parts += [f"{field} != {_set(block['except'])}"] if block.get("except") else []
            yield " ".join(parts)
        elif found := world.peers(namespace, peer):
            yield f"{field} {_set(pod.address for pod in found)}"


def _ports(ports: Sequence[Mapping[str, Any]] | None, receiving: Sequence[Pod]) -> Iterator[str]:
    """A named port is the receiving pod's own."""
    if not ports:
        yield ""
        return
    for port in ports:
        protocol, number = port.get("protocol", "TCP"), port.get("port")
        if number is None:
            yield f"meta l4proto {protocol.lower()}"
        elif isinstance(number, int):
            yield f"{protocol.lower()} dport {number}-{port.get('endPort', number)}"
        else:
            for pod in receiving:
                if (own := pod.ports.get((number, protocol))) is not None:
                    yield f"ip daddr {pod.address} {protocol.lower()} dport {own}"


def _set(elements: Iterable[str]) -> str:
    return f"{{ {', '.join(sorted(elements))} }}"
