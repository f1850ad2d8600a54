"""Which ports of which containers can be reached from inside which, asked from inside."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

PORTS = (8000, 8001, 9091, 9092, 9093, 9094)
"""HTTP edge, operations, ServerAppIO, Fleet, Control, ClientAppIO."""

Arrow = tuple[str, str, int]
"""From a container (or `outside`) to a port of another."""

# Prints for each of its arguments (host:port) whether it takes a connection. Nobody answers a packet that is dropped.
PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def open_(target):
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 1.5).close()
    except OSError:
        return False
    return True
with ThreadPoolExecutor(len(sys.argv)) as pool:
    print(json.dumps(list(pool.map(open_, sys.argv[1:]))))
"""
PYTHON = "/opt/trellis/bin/python"


@dataclass(frozen=True)
class Box:
    """A container under the name that it has in the table of arrows."""

    name: str
    container: Any  # of the Docker library

    @property
    def networks(self) -> Mapping[str, Mapping[str, Any]]:
        self.container.reload()
        found: Mapping[str, Mapping[str, Any]] = self.container.attrs["NetworkSettings"]["Networks"]
        return found

    def open(self, targets: Sequence[str]) -> list[bool]:
        """For each host:port, whether it takes a connection from inside this container."""
        code, output = self.container.exec_run([PYTHON, "-c", PROBE, *targets])
        assert code == 0, output
        answers: list[bool] = json.loads(output)
        return answers


def arrows(boxes: Sequence[Box]) -> set[Arrow]:
    """Every port of every address of each box that another one reaches.

    Beside each address one that nobody has in its network is tried. Where that answers, too, packets to this network
    leave the machine, and something out there answers for whoever is asked.
    """
    found = set()
    for box in boxes:
        others = [
            (other.name, port, f"{network['IPAddress']}:{port}", f"{nobody_at(network)}:{port}")
            for other in boxes
            if other is not box
            for network in other.networks.values()
            for port in PORTS
        ]
        reached = box.open([target for *_, target, _ in others])
        elsewhere = box.open([nobody for *_, nobody in others])
        found |= {
            (box.name, name, port)
            for (name, port, *_), good, out in zip(others, reached, elsewhere, strict=True)
            if good and not out
        }
    return found


def nobody_at(network: Mapping[str, Any]) -> str:
    """The last address of a container's network, which nobody has."""
    return str(ip_interface(f"{network['IPAddress']}/{network['IPPrefixLen']}").network[-2])


def reached_through_the_host(box: Box, ports: Iterable[int]) -> list[str]:
    """Ports of the host that a container reaches by the host's own address in one of its networks."""
    own = [ip_interface(f"{one['IPAddress']}/{one['IPPrefixLen']}") for one in box.networks.values()]
    addresses = [interface.network[1] for interface in own]  # where Docker puts the host
    targets = [f"{address}:{port}" for address in addresses for port in ports]
    return [target for target, good in zip(targets, box.open(targets), strict=True) if good]


@contextmanager
def listener_of_the_host() -> Iterator[int]:
    """The port of something that this machine serves on all of its addresses."""
    with socket.create_server(("0.0.0.0", 0)) as server:  # the system takes connections; nobody needs to answer
        yield server.getsockname()[1]


def published(box: Box) -> dict[int, list[int]]:
    """Ports of a container by which the host's own ports lead to it."""
    box.container.reload()
    return {
        int(inner.partition("/")[0]): sorted({int(one["HostPort"]) for one in outer})
        for inner, outer in box.container.ports.items()
        if outer
    }


def table(sites: int, arrow: Callable[[int], Iterable[Arrow]]) -> set[Arrow]:
    """The arrows of each site, numbered from 1."""
    return {found for number in range(1, sites + 1) for found in arrow(number)}
