"""Federations in containers that tests share."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from compose_world import COMPOSE, Project, ports, running
from trellis_testing import FederationContainer


@pytest.fixture(scope="session")
def plain(images: None) -> Iterator[Project]:
    """compose.yaml as it is."""
    with running(Project([COMPOSE / "compose.yaml"], ports())) as project:
        yield project


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sites(images: None) -> AsyncIterator[FederationContainer]:
    """Two sites, TLS everywhere. ClientApp processes that are told to end give back what takes longer than a second."""
    async with FederationContainer(2, tls=True, clientapp_flags=("--grace", "1s")) as federation:
        yield federation


@pytest.fixture(scope="session")
def images() -> None:
    """The images as `make images` builds them from the tree as it is."""
    built = subprocess.run(
        ["bash", str(Path(__file__).parents[2] / "scripts" / "build-images")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout
