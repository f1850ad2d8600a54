"""SuperNodes of old releases that are started with --rest, which proves nothing about them (WIRE.md 2.10)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from matrix import minor, releases
from trellis_kit.federation import free_ports
from trellis_testing import Layout, ProcessFederation, StockFlwr
from trellis_testing.stock import supernode

LAST = (1, 32)

WITH_REST = [one for one in releases() if minor(one) <= LAST]


@pytest.mark.parametrize("release", WITH_REST)
async def test_it_is_told_and_ends(release: str, tmp_path: Path) -> None:
    async with ProcessFederation(Layout(supernodes=()), tmp_path) as federation:
        at = federation.addresses
        (port,) = free_ports(1)
        node = supernode(
            StockFlwr(release),
            "rest",
            tmp_path,
            fleet=f"http://{at.http}",  # as these releases want it
            http=at.http,
            port=port,
            node_config="partition-id=0",
            flags=("--rest",),
        )
        node.start()
        try:
            async with asyncio.timeout(60):
                while "--rest" not in (log := federation["superlink"].log()):
                    await asyncio.sleep(0.1)
        finally:
            print(node.log())
            await node.stop()
    told = [json.loads(line) for line in log.splitlines() if "--rest" in line]
    assert "Start it without --rest" in told[0]["message"]
    assert told[0]["level"] == "WARNING"
