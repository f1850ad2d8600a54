"""Federations in containers that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from trellis_testing import FederationContainer


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sites() -> AsyncIterator[FederationContainer]:
    """Two sites, TLS everywhere. ClientApp processes that are told to end give back what takes longer than a second."""
    async with FederationContainer(2, tls=True, clientapp_flags=("--grace", "1s")) as federation:
        yield federation
