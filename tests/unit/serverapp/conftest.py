"""ServerApp processes in this one, and what they attend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trellis_serverapp.main import serve
from trellis_serverapp.settings import ServerAppSettings
from unit.runner.appio_world import Hub, attending


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    await hub.start()
    yield hub
    await hub.kill()


@pytest.fixture
def attend(hub: Hub, tmp_path: Path) -> Callable[..., Any]:
    """`async with attend(slots=2) as (stop, task):`"""
    return partial(attending, serve, ServerAppSettings, "serverappio_api_address", hub, tmp_path)
