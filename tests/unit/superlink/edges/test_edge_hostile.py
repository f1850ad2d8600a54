"""Peers that mean harm, over real connections: what they try is refused, and the others do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from edge_world import Network, model, network
from trellis_wire.identity import generate_key, sign_headers_grpc


async def _never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def silent_calls(net: Network, method: str, count: int, key: Any = None) -> list[Any]:
    """Calls of Fleet that are opened and never say anything."""
    key = key or generate_key()
    call = net.channels["fleet"].stream_stream(f"/flwr.proto.Fleet/{method}")
    return [call(_never(), metadata=sign_headers_grpc(key)) for _ in range(count)]


async def test_calls_that_say_nothing_do_not_keep_models_out(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        node, hosted = await net.node(), await net.running()
        calls = silent_calls(net, "PushObject", 60)
        letter = hosted.instruction(node.node_id, model(b"y" * 8_000_000), chunk=1 << 22)
        async with asyncio.timeout(30):
            missing = (await hosted.push(letter, inline=False)).missing_objects
            await hosted.send_objects({object_id: letter.objects[object_id] for object_id in missing})
            await node.take(await node.pull())
        for call in calls:
            call.cancel()
