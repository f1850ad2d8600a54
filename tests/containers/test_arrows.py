"""The arrows of the design's diagram, and no others: each connection between containers, tried from inside.

Each address of each container is tried from each other container on every port that a service of ours listens on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import docker
import pytest
from arrows import (
    PORTS,
    PROBE,
    PYTHON,
    Arrow,
    Box,
    arrows,
    listener_of_the_host,
    nobody_at,
    published,
    reached_through_the_host,
    table,
)
from compose_world import ROOT, Project
from trellis_testing import FederationContainer

SITES = 3


def inside(number: int) -> list[Arrow]:
    """What a site's own containers reach: an executor its SuperNode, a SuperNode the SuperLink's Fleet."""
    return [
        (f"clientapp-{number}", f"supernode-{number}", 9094),
        (f"supernode-{number}", "superlink", 9092),
    ]


def published_too(number: int) -> list[Arrow]:
    """Compose publishes Control and the HTTP edge as it does Fleet: there whoever reaches one reaches the others."""
    return [(f"supernode-{number}", "superlink", port) for port in (8000, 9093)]


SERVER: Arrow = ("serverapp", "superlink", 9091)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(900)
async def test_federation_container(sites: FederationContainer) -> None:
    boxes = [Box(name, sites[name].docker) for name in ("superlink", "serverapp")]
    boxes += [Box(f"{role}-{n}", sites[f"{role}-{n}"].docker) for n in (1, 2) for role in ("supernode", "clientapp")]
    assert arrows(boxes) == table(2, inside) | {SERVER}
    ports = {box.name: published(box) for box in boxes}
    assert {name for name, found in ports.items() if found} == {"superlink"}
    assert set(ports["superlink"]) == {8000, 9093}
    assert "online" in (await sites.control.nodes()).values()  # Control, from outside
    outer = [port for found in ports["superlink"].values() for port in found]
    with listener_of_the_host() as port:
        for box in boxes:
            reached = reached_through_the_host(box, [*outer, port])
            # From `control` alone, where the ports are published: that of the test, on all addresses.
            assert [one.rpartition(":")[2] for one in reached] == ([str(port)] if box.name == "superlink" else [])


@pytest.mark.timeout(900)
def test_compose(plain: Project) -> None:
    engine = docker.from_env()
    boxes = [Box(service, engine.containers.get(container)) for service, container in plain.containers().items()]
    assert len(boxes) == 2 + 2 * SITES
    assert arrows(boxes) == table(SITES, inside) | table(SITES, published_too) | {SERVER}
    ports = {box.name: published(box) for box in boxes}
    assert {name for name, found in ports.items() if found} == {"superlink"}
    assert set(ports["superlink"]) == {8000, 9092, 9093}
    outer = [port for found in ports["superlink"].values() for port in found]
    with listener_of_the_host() as port:
        for box in boxes:
            reached = reached_through_the_host(box, [*outer, port])
            if box.name == "serverapp" or box.name.startswith("clientapp"):
                assert reached == []
            else:
                assert [one for one in reached if one.endswith(f":{port}")]  # so it can be reached, and was looked for
    assert open_to_a_command_line(plain, boxes) == {("superlink", 8000), ("superlink", 9092), ("superlink", 9093)}


def open_to_a_command_line(project: Project, boxes: Sequence[Box]) -> set[tuple[str, int]]:
    """What is reached from a container of the command line, started beside the others."""
    others = [
        (box.name, port, f"{network['IPAddress']}:{port}", f"{nobody_at(network)}:{port}")
        for box in boxes
        for network in box.networks.values()
        for port in PORTS
    ]
    targets = [target for *_, target, _ in others] + [nobody for *_, nobody in others]
    said = project.cli(PYTHON, "-c", PROBE, *targets, app=ROOT / "examples" / "digits")
    answers = json.loads(said.splitlines()[-1])
    reached, elsewhere = answers[: len(others)], answers[len(others) :]  # as in arrows()
    return {
        (name, port) for (name, port, *_), good, out in zip(others, reached, elsewhere, strict=True) if good and not out
    }
