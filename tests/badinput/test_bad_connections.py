"""Connections to the HTTP edge that are meant to do harm: hidden requests, slow peers, crowds."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from badinput_world import World
from http_world import HttpWorld, Lines, back_to, cost, over_http, request, say, statuses
from trellis_kit.http_server import CONNECTIONS
from trellis_wire.pb.edge import control_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web(world: World) -> AsyncIterator[HttpWorld]:
    async with over_http(world) as made:
        yield made


# ---- requests within requests ----------------------------------------------------------------------------------------


def stop(web: HttpWorld) -> bytes:
    """What an attacker would have the SuperLink do in somebody else's name."""
    body = control_pb2.StopRunRequest(run_id=web.hosted.run_id).SerializeToString()
    return request("/v1/control/stop-run", body=body)


HIDING = {
    "two kinds of length": (["content-length: 5", "transfer-encoding: chunked"], b"0\r\n\r\n"),
    "the other way round": (["transfer-encoding: chunked", "content-length: 5"], b"0\r\n\r\n"),
    "two lengths": (["content-length: 0", "content-length: 400"], b""),
    "two lengths in one": (["content-length: 0, 400"], b""),
    "two encodings": (["transfer-encoding: chunked", "transfer-encoding: identity"], b"0\r\n\r\n"),
    "an encoding that is unknown": (["transfer-encoding: xchunked"], b"0\r\n\r\n"),
    "an encoding after a space": (["transfer-encoding : chunked"], b"0\r\n\r\n"),
    "a folded encoding": (["transfer-encoding:\r\n chunked"], b"0\r\n\r\n"),
    "a folded length": (["content-length:\r\n 400"], b""),
    "a length behind a bare LF": (["x: y\ncontent-length: 400"], b""),
    "a length behind a bare CR": (["x: y\rcontent-length: 400"], b""),
    "a length with a sign": (["content-length: +0"], b""),
    "a chunk's size with a sign": (["transfer-encoding: chunked"], b"-0\r\n\r\n"),
    "a chunk's size in C": (["transfer-encoding: chunked"], b"0x0\r\n\r\n"),
    "a chunk's size with a bare LF": (["transfer-encoding: chunked"], b"0\n\r\n"),
    "a chunk's size of 100 digits": (["transfer-encoding: chunked"], b"0" * 100 + b"\r\n\r\n"),
    "a chunk that is longer than it says": (["transfer-encoding: chunked"], b"0\r\nx\r\n0\r\n\r\n"),
    "an extension with a bare LF": (["transfer-encoding: chunked"], b"1;\n2\r\nx\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("name", HIDING)
@pytest.mark.parametrize("path", ["/v1/control/list-runs", "/v1/control/nonsense", "/health"])
async def test_what_could_be_read_in_two_ways_hides_nothing(web: HttpWorld, name: str, path: str) -> None:
    before, lines = web.state(), Lines(web.role)
    headers, body = HIDING[name]
    head = "\r\n".join((f"POST {path} HTTP/1.1", "host: here", "content-type: application/protobuf", *headers, "", ""))
    said = await say(web.http, head.encode() + body + stop(web))
    assert statuses(said) in ([400], [501], [404], [405]), said
    if path == "/v1/control/list-runs":
        assert statuses(said) in ([400], [501])
    assert web.state() == before
    lines.check(most=2)


async def test_an_open_request_would_have_done_it(web: HttpWorld) -> None:
    """Else the test above would show nothing: the same bytes stop a run where they are a request of their own."""
    submitted = await web.submit(web.fab)
    body = control_pb2.StopRunRequest(run_id=submitted.run_id).SerializeToString()
    first = request("/health", method="GET").replace(b"connection: close\r\n", b"")
    assert statuses(await say(web.http, first + request("/v1/control/stop-run", body=body))) == [200, 200]
    listed = await web.control.ListRuns(control_pb2.ListRunsRequest(run_id=submitted.run_id))
    assert listed.run_dict[submitted.run_id].status.sub_status == "stopped"


def address_of(web: HttpWorld, surface: str) -> str:
    """Where the SuperLink listens: "http", or gRPC's "fleet" and "control"."""
    argv = web.role.argv
    return web.http if surface == "http" else argv[argv.index(f"--{surface}-api-address") + 1]


# ---- slow peers ------------------------------------------------------------------------------------------------------


async def dribble(address: str, begin: bytes, every: float, byte: bytes = b"x") -> tuple[bytes, float]:
    """Sends a byte from time to time, for as long as it may; what was said to that, and after how many seconds."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(begin)
    began = time.monotonic()

    async def sending() -> None:
        while True:
            await asyncio.sleep(every)
            writer.write(byte)

    task = asyncio.create_task(sending())
    try:
        async with asyncio.timeout(120):
            said = b""
            try:
                while more := await reader.read(1 << 16):
                    said += more
            except ConnectionError:
                pass
        return said, time.monotonic() - began
    finally:
        task.cancel()
        writer.close()


@pytest.mark.timeout(200)
async def test_slow_peers_have_to_go(web: HttpWorld) -> None:
    before, lines, pid = web.state(), Lines(web.role), web.role.pid
    assert pid is not None
    descriptors = cost(pid).descriptors
    never = 10**6
    body = request("/v1/control/list-runs", "content-length: 1000000")
    chunks = request("/v1/control/list-runs", "transfer-encoding: chunked")
    slow = [
        dribble(web.http, b"", never),
        dribble(address_of(web, "fleet"), b"", never),
        dribble(web.http, b"POST /v1/control/list-runs HT", never),
        dribble(web.http, b"POST /v1/control/list-runs HTTP/1.1\r\nx: ", 0.5),
        dribble(web.http, body, never),
        dribble(web.http, body, 0.5),
        dribble(web.http, chunks, 0.5, b"1\r\nx\r\n"),
    ]
    tasks = [asyncio.create_task(one) for one in slow]
    while not all(task.done() for task in tasks):
        await web.honest()
        await asyncio.sleep(1)
    results = [await task for task in tasks]
    assert [statuses(said) for said, _ in results] == [[], [], [], [], [408], [408], [408]]
    assert all(seconds > 10 for _, seconds in results)
    await back_to(pid, lambda now: now.descriptors <= descriptors + 2)
    assert web.state() == before
    lines.check(most=3)


# ---- crowds ----------------------------------------------------------------------------------------------------------

CROWD = 5000
COME_AND_GO = 16  # descriptors


@asynccontextmanager
async def crowd(address: str) -> AsyncIterator[None]:
    """Connections that do nothing, of a process of its own."""
    host, _, port = address.rpartition(":")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("idle_crowd.py")), host, port, str(CROWD)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(120):
            assert await process.stdout.readline() == f"{CROWD} connections\n".encode()
        yield
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("surface", ["http", "fleet", "control"])
async def test_a_crowd_that_does_nothing_stops_nobody(web: HttpWorld, world: World, surface: str) -> None:
    """Not over HTTP, where the longest idle give way, and not over gRPC."""
    before, lines, pid = web.state(), Lines(web.role), web.role.pid
    assert pid is not None
    address = address_of(web, surface)
    found = [cost(pid)]
    for _ in range(2):
        async with crowd(address):
            found.append(cost(pid))
            for _ in range(5):
                await web.honest()
                async with asyncio.timeout(60):
                    assert await world.node.heartbeat()
                    assert await world.control.ListRuns(control_pb2.ListRunsRequest())
            if surface == "http":
                assert cost(pid).descriptors < CONNECTIONS + found[0].descriptors + COME_AND_GO
        found.append(await back_to(pid, lambda now: now.descriptors <= found[0].descriptors + COME_AND_GO))
    print(surface, *found)  # before, with a crowd, after it, with the next, after that
    assert found[-1].memory < found[2].memory + 16, found
    assert web.state() == before
    lines.check(most=6)
