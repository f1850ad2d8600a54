from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from edge_world import Network, network


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Network]:
    async with network(tmp_path) as here:
        yield here
