"""Which transport a SuperLink offers is found out; then calls over HTTP end as they do over gRPC. Real ports, with and
without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from edge_world import Network, StockNode, network
from grpc import StatusCode
from pki import Authority, trust
from trellis_kit.federation import find_program, free_ports
from trellis_kit.http_channel import EdgeChannel, Frames, HttpChannel, path_of
from trellis_kit.http_server import HttpServer
from trellis_kit.probe import Target, speaks_http
from trellis_kit.tls import ClientTls
from trellis_wire.identity import sign_headers_grpc
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, fleet_pb2, run_pb2
from trellis_wire.pb.edge.control_pb2_grpc import ControlStub
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub

SECONDS = 30.0


@dataclass
class World:
    """A SuperLink, and what its clients trust."""

    net: Network
    tls: ClientTls | None

    def target(self, address: str) -> Target:
        return Target(address, self.tls)

    @property
    def http(self) -> Target:
        return self.target(self.net.link.http.bound)

    @property
    def fleet(self) -> Target:
        return self.target(self.net.link.fleet.bound)

    @property
    def control(self) -> Target:
        return self.target(self.net.link.control.bound)

    @property
    def flags(self) -> list[str]:
        if self.tls is None:
            return ["--insecure"]
        return ["--root-certificates", str(self.tls.root_certificates)]


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if not request.param:
        async with network(tmp_path) as net:
            yield World(net, None)
        return
    authority = Authority(tmp_path / "pki", "ca")
    pair = authority.server()
    changes: dict[str, Any] = {
        "insecure": False,
        "ssl_certfile": pair.certfile,
        "ssl_keyfile": pair.keyfile,
        "appio_insecure": True,
    }
    async with network(tmp_path, **changes, join_token="x" * 32) as net:
        yield World(net, trust(authority))


@asynccontextmanager
async def channel(target: Target) -> AsyncIterator[EdgeChannel]:
    made = EdgeChannel(target, ())
    try:
        yield made
    finally:
        await made.close()


async def spoken(target: Target) -> bool | None:
    return await asyncio.to_thread(speaks_http, target)


# ---- which one it is -------------------------------------------------------------------------------------------------


async def test_what_is_offered_is_found_out(world: World) -> None:
    assert await spoken(world.http) is True
    assert await spoken(world.fleet) is False
    assert await spoken(world.control) is False
    (port,) = free_ports(1)
    assert await spoken(world.target(f"127.0.0.1:{port}")) is None


async def test_who_is_not_trusted_is_nobody(world: World, tmp_path: Path) -> None:
    """Neither by a certificate of another CA, nor without any."""
    other = trust(Authority(tmp_path / "other", "other"))
    for target in (world.http, world.fleet):
        assert await spoken(Target(target.address, other)) is None


async def test_an_http_server_that_is_not_well_is_none() -> None:
    async def ill(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    server = HttpServer("ill", "127.0.0.1:0", ill, tls=None, flag="--port")
    await server.start()
    assert await spoken(Target(server.bound, None)) is False
    await server.stop(1)


async def test_a_server_that_says_nothing_is_given_up() -> None:
    server = await asyncio.start_server(lambda _reader, _writer: asyncio.sleep(SECONDS), "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        assert await spoken(Target(f"{host}:{port}", None)) is False


# ---- services --------------------------------------------------------------------------------------------------------


async def test_a_node_works_over_either(world: World) -> None:
    for target, over_http in ((world.http, True), (world.fleet, False)):
        async with channel(target) as made:
            node = StockNode(FleetStub(made))
            assert await node.join()
            assert await node.heartbeat()
            assert made.over_http is over_http


async def status_of(call: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""


async def test_what_is_refused_is_refused_alike(world: World) -> None:
    told = []
    for targets in ((world.http, world.http), (world.fleet, world.control)):
        async with channel(targets[0]) as fleet, channel(targets[1]) as control:
            node, stub = StockNode(FleetStub(fleet)), ControlStub(control)
            await node.join()
            calls = [
                node.call("GetRun", run_pb2.GetRunRequest(node=node.node, run_id=7)),
                node.call("GetFab", run_pb2.GetFabRequest(node=node.node, run_id=7, hash_str="0" * 64)),
                stub.StopRun(control_pb2.StopRunRequest(run_id=7)),
                stub.RegisterNode(control_pb2.RegisterNodeRequest(public_key=b"none")),
                stub.PullArtifacts(control_pb2.PullArtifactsRequest(run_id=7)),
                stub.GetLoginDetails(control_pb2.GetLoginDetailsRequest()),
            ]
            told.append([await status_of(call) for call in calls])
            unsigned = FleetStub(fleet).PullMessages(fleet_pb2.PullMessagesRequest(node=node.node))
            assert (await status_of(unsigned))[0] is StatusCode.UNAUTHENTICATED
    assert told[0] == told[1]
    assert StatusCode.UNKNOWN not in [status for status, _ in told[0]]


async def test_time_that_runs_out(world: World) -> None:
    async with channel(world.http) as made:
        node = StockNode(FleetStub(made))
        await node.join()
        metadata = fleet_pb2.PullMessagesRequest(node=node.node)
        held = FleetStub(made).PullMessages(metadata, metadata=sign_headers_grpc(node.key), timeout=0.5)
        assert (await status_of(held))[0] is StatusCode.DEADLINE_EXCEEDED
        assert await node.heartbeat()


@dataclass
class Crossing:
    """Leads one address to another, which may change; then connections break."""

    address: str = ""
    to: str = ""
    writers: set[asyncio.StreamWriter] | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.writers is not None
        host, _, port = self.to.rpartition(":")
        try:
            there, away = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        self.writers |= {writer, away}
        await asyncio.gather(self._pump(reader, away), self._pump(there, writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    def lead(self, to: str) -> None:
        self.to = to
        for writer in self.writers or ():
            writer.transport.abort()
        self.writers = set()


async def beats(node: StockNode) -> bool:
    """Tries until it gets through."""
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await node.heartbeat()
            await asyncio.sleep(0.05)


async def test_another_release_behind_the_address_is_noticed(world: World) -> None:
    """A SuperLink that is exchanged for one that speaks otherwise, and back."""
    crossing = Crossing()
    server = await asyncio.start_server(crossing, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        async with channel(world.target(f"{host}:{port}")) as made:
            node = StockNode(FleetStub(made))
            crossing.lead(world.net.link.fleet.bound)
            await node.join()
            for to, over_http in ((world.http, True), (world.fleet, False), (world.http, True)):
                crossing.lead(to.address)
                assert await beats(node)
                assert made.over_http is over_http
        crossing.lead("127.0.0.1:1")


async def test_nobody_there_is_unavailable() -> None:
    (port,) = free_ports(1)
    async with channel(Target(f"127.0.0.1:{port}", None)) as made:
        listing = ControlStub(made).ListRuns(control_pb2.ListRunsRequest(), timeout=SECONDS)
        assert (await status_of(listing))[0] is StatusCode.UNAVAILABLE


# ---- the command line ------------------------------------------------------------------------------------------------


async def test_a_log_is_streamed_until_the_run_ends(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        hosted = await net.running()
        lines = [appio_pb2.LogLine(timestamp=1.0 + n, level="OUT", text=f"{n}\n") for n in range(500)]
        await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=lines, sequence=1))

        def follow() -> Iterator[str]:
            with HttpChannel(Target(net.link.http.bound, None)) as made:
                for item in ControlStub(made).StreamLogs(control_pb2.StreamLogsRequest(run_id=hosted.run_id)):
                    yield item.log_output

        following = asyncio.create_task(asyncio.to_thread(lambda: "".join(follow())))
        await net.held("control")
        await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))
        assert await asyncio.wait_for(following, SECONDS) == "".join(f"{n}\n" for n in range(500))


async def test_a_stream_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        hosted = await net.running()
        line = appio_pb2.LogLine(timestamp=1.0, level="OUT", text="first")
        await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=[line], sequence=1))
        with HttpChannel(Target(net.link.http.bound, None)) as made:
            stream = ControlStub(made).StreamLogs(control_pb2.StreamLogsRequest(run_id=hosted.run_id))

            first = threading.Event()

            def read() -> None:
                for item in stream:
                    assert item.log_output == "first"
                    first.set()

            def follow() -> StatusCode:
                with pytest.raises(grpc.RpcError) as ended:
                    read()
                code: StatusCode = ended.value.code()
                return code

            following = asyncio.create_task(asyncio.to_thread(follow))
            assert await asyncio.to_thread(first.wait, SECONDS)
            await net.held("control")
            await asyncio.to_thread(stream.cancel)
            assert await asyncio.wait_for(following, SECONDS) is StatusCode.CANCELLED
            await net.held("control", 0)


def frames(*messages: bytes) -> bytes:
    return b"".join(len(one).to_bytes(4, "big") + one for one in messages)


def test_frames_may_be_cut_anywhere() -> None:
    messages = [b"", b"a", b"b" * 300, b""]
    data = frames(*messages)
    for size in (1, 2, 3, 5, 299, len(data)):
        reading = Frames()
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        assert [one for part in parts for one in reading.feed(part)] == messages
        reading.end()


def test_frames_that_are_none() -> None:
    cut = Frames()
    assert list(cut.feed(frames(b"abc")[:-1])) == []
    expect(cut.end, StatusCode.UNAVAILABLE)
    expect(lambda: list(Frames().feed(b"\xff" * 8)), StatusCode.INTERNAL)


def expect(work: Callable[[], object], status: StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        work()
    assert refused.value.code() is status


def test_paths() -> None:
    assert path_of("/flwr.proto.Fleet/PullMessages") == "/v1/fleet/pull-messages"
    assert path_of("/flwr.proto.Control/BeginConnectorOAuth") == "/v1/control/begin-connector-oauth"


# ---- our programs ----------------------------------------------------------------------------------------------------


async def test_the_command_line_finds_out_by_itself(world: World, tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "FLWR_HOME": str(tmp_path / "flwr")}
    for target in (world.http, world.control):
        argv = [find_program("trellis"), "ls", "--superlink", target.address, *world.flags]
        done = await asyncio.to_thread(subprocess.run, argv, env=env, cwd=tmp_path, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr


async def test_a_supernode_finds_out_by_itself(world: World, tmp_path: Path) -> None:
    for name, target in (("http", world.http), ("grpc", world.fleet)):
        (own,) = free_ports(1)
        argv = [find_program("trellis-supernode"), "--superlink", target.address, *world.flags]
        argv += [
            "--clientappio-api-address",
            f"127.0.0.1:{own}",
            "--state-dir",
            str(tmp_path / name),
            "--appio-insecure",
        ]
        process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE, cwd=tmp_path)
        assert process.stderr is not None
        try:
            async with asyncio.timeout(60):
                said = b""
                while b"speaks " not in said:
                    line = await process.stderr.readline()
                    assert line, said
                    said += line
                assert (b"speaks HTTP" in said) is (name == "http")
        finally:
            process.terminate()
            await process.communicate()
