"""One SuperLink for all cases of a file; whatever they sent, a good run completes in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from badinput_world import World, started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with started(tmp_path_factory.mktemp("superlink")) as made:
        yield made
        await made.good_run()
