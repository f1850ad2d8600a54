"""Hosts with real interpreters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from trellis_runner.host import GuestHost
from unit.runner.runner_world import World, interpreter, settings

NEWEST = "1.41.0"


@pytest_asyncio.fixture(loop_scope="session")
async def hosting(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[World]]]:
    """Makes a World: `await hosting("1.24.0", memory=...)`."""
    async with AsyncExitStack() as stack:

        async def make(version: str = NEWEST, **more: Any) -> World:
            host = GuestHost(settings(interpreter(version), tmp_path, **more))
            await host.start()
            stack.push_async_callback(host.stop)
            return World(host, tmp_path)

        yield make


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def shared_host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuestHost]:
    host = GuestHost(settings(interpreter(NEWEST), tmp_path_factory.mktemp("host")))
    await host.start()
    yield host
    await host.stop()


@pytest.fixture
def world(shared_host: GuestHost, tmp_path: Path) -> World:
    """A World on the newest release here; its host serves other tests too."""
    return World(shared_host, tmp_path)
