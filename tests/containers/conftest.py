"""Federations in containers that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import built_images
import pytest
import pytest_asyncio
from compose_world import COMPOSE, Project, left_by_session, ports, running, unnamed_volumes
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
def images() -> str:
    """The images as `make images` builds them from the tree as it is; what it says of their sizes."""
    return built_images.build()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Set up first, so torn down last: of what this session started there is no container, network or volume."""
    volumes = unnamed_volumes()
    yield
    assert left_by_session() == []
    assert unnamed_volumes() - volumes == set()
