"""The same world through the HTTP edge: peers made by hand speak HTTP, or bytes that only look like it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import httpx
from badinput_world import Case, Log, Refused, World
from edge_world import StockNode
from grpc import StatusCode
from trellis_kit.http_channel import EdgeChannel, path_of
from trellis_kit.probe import Target
from trellis_wire.identity import sign_headers_http
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub

PROTOBUF: Mapping[str, str] = {"content-type": "application/protobuf"}
SECONDS = 60.0


@dataclass
class HttpWorld(World):
    """Fleet and Control over HTTP."""

    client: httpx.AsyncClient

    async def raw(self, surface: str, method: str, message: bytes, metadata: Any = None) -> Any:
        answer = await self.post(path_of(method), message, key=self.node.key if surface == "fleet" else None)
        if answer.status_code == 400:
            assert answer.json()["code"] == 1003
        return await (self.channels[surface].unary_unary(method, bytes, bytes))(message, metadata=metadata)

    async def post(self, path: str, body: bytes = b"", *, key: Any = None, **headers: str) -> httpx.Response:
        signed = {} if key is None else sign_headers_http(key)
        return await self.client.post(path, content=body, headers={**PROTOBUF, **signed, **headers})

    async def check(self, case: Case) -> None:
        expected = case.expected
        if isinstance(expected, Refused) and expected.status is StatusCode.UNAUTHENTICATED:
            expected = replace(expected, text="^Invalid SuperNode authentication$")  # no more than that is said
        await super().check(replace(case, expected=expected))

    async def honest(self) -> None:
        """Peers that mean well are served, by both transports."""
        async with asyncio.timeout(SECONDS):
            assert (await self.client.get("/health")).status_code == 200
            assert (await self.post("/v1/control/list-runs")).status_code == 200
            assert await self.node.heartbeat()


@asynccontextmanager
async def over_http(world: World) -> AsyncIterator[HttpWorld]:
    """The world, with its nodes and its command line on HTTP."""
    channel = EdgeChannel(Target(world.http, None), ())
    async with httpx.AsyncClient(base_url=f"http://{world.http}", timeout=SECONDS, trust_env=False) as client:

        def moved(node: StockNode) -> StockNode:
            return StockNode(FleetStub(channel), key=node.key, node_id=node.node_id)

        same = {field.name: getattr(world, field.name) for field in fields(World)}
        same["channels"] = {**world.channels, "fleet": channel, "control": channel}
        yield HttpWorld(
            **{**same, "node": moved(world.node), "done": moved(world.done), "forger": moved(world.forger)},
            client=client,
        )
    await channel.close()


# ---- bytes -----------------------------------------------------------------------------------------------------------


async def say(address: str, *parts: bytes, end: bool = False) -> bytes:
    """Sends these bytes on a connection of their own; what comes back until the other side closes.

    With `end` the connection is closed once they are sent.
    """
    host, _, port = address.rpartition(":")
    said = b""
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
            while not end and (more := await reader.read(1 << 16)):
                said += more
        writer.close()
    return said


def request(path: str, *lines: str, method: str = "POST", body: bytes = b"") -> bytes:
    """A request after which the connection ends; `lines` are further headers."""
    head = [f"{method} {path} HTTP/1.1", "host: here", "content-type: application/protobuf", "connection: close"]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join((*head, *lines, "", "")).encode("latin-1") + body


def statuses(said: bytes) -> list[int]:
    """Of all answers in it."""
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]


# ---- what it costs the SuperLink -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Open descriptors, and memory in MiB."""

    descriptors: int
    memory: float


def cost(pid: int) -> Cost:
    (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return Cost(len(os.listdir(f"/proc/{pid}/fd")), int(resident) / 1024)


async def back_to(pid: int, condition: Callable[[Cost], bool]) -> Cost:
    """What it costs, once that is as it should be."""
    end = time.monotonic() + SECONDS
    while not condition(found := cost(pid)):
        assert time.monotonic() < end, found
        await asyncio.sleep(0.1)
    return found


class Lines(Log):
    """The lines that the SuperLink writes from now on, as they are."""

    def all(self) -> list[str]:
        return self._all()[self._skip :]

    def check(self, most: int, size: int = 3000) -> None:
        """There are no more than `most`, none is longer than `size`, and none tells of an error of ours."""
        lines = self.all()
        assert len(lines) <= most, lines[-5:]
        for line in lines:
            assert len(line) <= size, line[:size]
            told = json.loads(line)
            assert "exception" not in told, line
            assert told["level"] in ("INFO", "WARNING"), line
            assert "Traceback" not in line
