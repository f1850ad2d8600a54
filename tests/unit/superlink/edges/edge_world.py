"""What the tests of the surfaces share: a whole SuperLink on free ports, and peers that speak to it as real ones do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from trellis_superlink.core.service import Core
from trellis_superlink.edges.links import KEY
from trellis_superlink.main import SuperLink, core_config
from trellis_superlink.settings import SuperLinkSettings
from trellis_wire.fab import build
from trellis_wire.identity import generate_key, public_pem, sign_headers_grpc
from trellis_wire.messages import Metadata
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.appio.appio_pb2_grpc import ServerAppIOStub
from trellis_wire.pb.edge import control_pb2, fleet_pb2, message_pb2, node_pb2, records_pb2, run_pb2
from trellis_wire.pb.edge.control_pb2_grpc import ControlStub
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub, GrpcAdapterStub
from trellis_wire.records import Array, ArrayRecord, ConfigRecord, Record, deflate_message, inflate_message

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "small"
version = "1.2.3"
description = ""
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "small:server"
clientapp = "small:client"

[tool.flwr.app.config]
rounds = 3
"""

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def make_fab(folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "small.py").write_text("server = client = None\n")
    return build(folder)


@dataclass
class Letter:
    """A message as bytes: its tree, its objects, and the metadata with its id."""

    metadata: Metadata
    tree: Tree
    objects: dict[str, bytes]

    @classmethod
    def of(cls, metadata: Metadata, content: Mapping[str, Record], chunk: int = 1 << 20) -> Letter:
        bundle = deflate_message(metadata, content, None, chunk_size=chunk)
        values = {**metadata.__dict__, "message_id": bundle.tree.object_id}
        return cls(Metadata(**values), bundle.tree, {oid: bytes(one.content()) for oid, one in bundle.objects.items()})

    @property
    def id(self) -> str:
        return self.tree.object_id

    def to_edge(self) -> message_pb2.Message:
        return message_pb2.Message(metadata=self.metadata.to_edge(), content=records_pb2.RecordDict())

    def to_appio(self, *, inline: bool = True) -> appio_pb2.Parcel:
        along = self.objects if inline else {self.id: self.objects[self.id]}
        return appio_pb2.Parcel(
            tree=self.tree.to_appio(),
            objects=[appio_pb2.Object(object_id=oid, content=content) for oid, content in along.items()],
        )


def npy(data: bytes) -> bytes:
    """What numpy.save writes for an array of these bytes."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(data)},), }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


def records(size: int = 100, fill: bytes = b"x", number: int = 1) -> dict[str, Record]:
    return model(fill * size, number)


def model(data: bytes, number: int = 1) -> dict[str, Record]:
    array = Array("uint8", (len(data),), npy(data))
    return {"arrays": ArrayRecord({"w": array}), "config": ConfigRecord({"n": number})}


@dataclass
class StockNode:
    """A SuperNode as Flower's are: one call after the other, each signed. `old`: the life cycle of 1.20-1.22."""

    stub: Any
    old: bool = False
    key: Any = field(default_factory=generate_key)
    node_id: int = 0

    async def call(self, method: str, request: Any, *headers: tuple[str, str]) -> Any:
        metadata = [*sign_headers_grpc(self.key), *headers]
        return await getattr(self.stub, method)(request, metadata=metadata, timeout=120)

    @property
    def node(self) -> node_pb2.Node:
        return node_pb2.Node(node_id=self.node_id)

    async def join(self) -> int:
        if self.old:
            answer = await self.call("CreateNode", fleet_pb2.CreateNodeRequest(heartbeat_interval=30))
            self.node_id = answer.node.node_id
        else:
            pem = public_pem(self.key)
            await self.call("RegisterNode", fleet_pb2.RegisterNodeFleetRequest(public_key=pem))
            answer = await self.call(
                "ActivateNode", fleet_pb2.ActivateNodeRequest(public_key=pem, heartbeat_interval=30)
            )
            self.node_id = answer.node_id
        return self.node_id

    async def heartbeat(self) -> bool:
        request = fleet_pb2.SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=30)
        return bool((await self.call("SendNodeHeartbeat", request)).success)

    async def pull(self) -> fleet_pb2.PullMessagesResponse:
        answer = await self.call("PullMessages", fleet_pb2.PullMessagesRequest(node=self.node))
        assert isinstance(answer, fleet_pb2.PullMessagesResponse)
        return answer

    async def pull_object(self, run_id: int, object_id: str) -> fleet_pb2.PullObjectResponse:
        request = fleet_pb2.PullObjectRequest(node=self.node, run_id=run_id, object_id=object_id)
        answer = await self.call("PullObject", request)
        assert isinstance(answer, fleet_pb2.PullObjectResponse)
        return answer

    async def push_object(self, run_id: int, object_id: str, content: bytes) -> bool:
        request = fleet_pb2.PushObjectRequest(
            node=self.node, run_id=run_id, object_id=object_id, object_content=content
        )
        return bool((await self.call("PushObject", request)).stored)

    async def take(self, answer: fleet_pb2.PullMessagesResponse) -> tuple[Metadata, dict[str, Record]]:
        """What a node does with the message it pulled: run, FAB, objects children first, confirmation."""
        message, tree = answer.messages_list[0], Tree.from_edge(answer.message_object_trees[0])
        run_id = message.metadata.run_id
        run = (await self.call("GetRun", run_pb2.GetRunRequest(node=self.node, run_id=run_id))).run
        fab = await self.call("GetFab", run_pb2.GetFabRequest(node=self.node, hash_str=run.fab_hash, run_id=run_id))
        assert fab.fab.hash_str == run.fab_hash
        assert fab.fab.content
        objects: dict[str, bytes] = {}
        for object_id in tree.post_order():
            pulled = await self.pull_object(run_id, object_id)
            assert pulled.object_found
            assert pulled.object_available
            objects[object_id] = pulled.object_content
        await self.call(
            "ConfirmMessageReceived",
            fleet_pb2.ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=tree.object_id),
        )
        metadata, error, content = inflate_message(tree, objects.__getitem__)
        assert error is None
        assert content is not None
        assert message.HasField("content")
        return metadata, content

    def reply(self, to: Metadata, content: Mapping[str, Record], **changes: Any) -> Letter:
        chunk = changes.pop("chunk", 1 << 20)
        now = time.time()
        values: dict[str, Any] = {
            "run_id": to.run_id,
            "message_id": "",
            "src_node_id": self.node_id,
            "dst_node_id": 1,
            "reply_to_message_id": to.message_id,
            "group_id": to.group_id,
            "ttl": to.created_at + to.ttl - now,
            "message_type": to.message_type,
            "created_at": now,
        }
        return Letter.of(Metadata(**{**values, **changes}), content, chunk)

    async def push(self, letter: Letter) -> list[str]:
        """Announces a message; the ids of the objects that the SuperLink lacks."""
        request = fleet_pb2.PushMessagesRequest(
            node=self.node, messages_list=[letter.to_edge()], message_object_trees=[letter.tree.to_edge()]
        )
        return list((await self.call("PushMessages", request)).objects_to_push)

    async def send(self, letter: Letter) -> None:
        for object_id in await self.push(letter):
            assert await self.push_object(letter.metadata.run_id, object_id, letter.objects[object_id])

    async def leave(self) -> None:
        if self.old:
            await self.call("DeleteNode", fleet_pb2.DeleteNodeRequest(node=self.node))
            return
        await self.call("DeactivateNode", fleet_pb2.DeactivateNodeRequest(node_id=self.node_id))
        await self.call("UnregisterNode", fleet_pb2.UnregisterNodeFleetRequest(node_id=self.node_id))


class StreamEnded(Exception):
    """There will be no more orders: the status and why."""


class Executor:
    """An executor of ServerApps with one stream of reports and orders."""

    def __init__(self, stub: Any, executor_id: str = "e1", join_token: str = "") -> None:
        self.stub = stub
        self.executor_id = executor_id
        self._metadata = [("trellis-join-token", join_token)] if join_token else []
        self._reports: asyncio.Queue[appio_pb2.ExecutorReport | None] = asyncio.Queue()
        self._call: Any = None

    async def attend(self, slots: int = 1, holding: Sequence[str] = ()) -> None:
        async def reports() -> AsyncIterator[appio_pb2.ExecutorReport]:
            while (report := await self._reports.get()) is not None:
                yield report

        self._call = self.stub.Attend(reports(), metadata=self._metadata)
        hello = appio_pb2.ExecutorHello(
            executor_id=self.executor_id, slots=slots, version="test", host="here", holding=list(holding)
        )
        self._reports.put_nowait(appio_pb2.ExecutorReport(hello=hello))
        assert (await self.order()).WhichOneof("order") == "welcome"
        self.report(free_slots=slots)

    def report(self, **report: Any) -> None:
        self._reports.put_nowait(appio_pb2.ExecutorReport(**report))

    async def order(self) -> appio_pb2.Order:
        try:
            order = await asyncio.wait_for(self._call.read(), 20)
        except grpc.aio.AioRpcError as error:
            raise StreamEnded(error.code().name, error.details()) from error
        if not isinstance(order, appio_pb2.Order):
            raise StreamEnded("OK")
        return order

    async def work(self) -> Hosted:
        order = await self.order()
        assert order.WhichOneof("order") == "work", order
        return Hosted(self.stub, order.work)

    def leave(self) -> None:
        self._reports.put_nowait(None)

    @property
    def call(self) -> Any:
        return self._call


FLEET = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods_by_name


class Wrapped:
    """FleetStub's calls as a SuperNode with --grpc-adapter makes them."""

    def __init__(self, net: Network) -> None:
        self._stub: Any = GrpcAdapterStub(net.channels["fleet"])

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, **options: Any) -> Any:
            name = type(request).__name__
            sent = fleet_pb2.MessageContainer(
                metadata={"flower-version": "1.24.0", "grpc-message-qualname": name},
                grpc_message_name=name,
                grpc_message_content=request.SerializeToString(),
            )
            answer = await self._stub.SendReceive(sent, **options)
            kind = FLEET[method].output_type
            assert answer.grpc_message_name == kind.name
            return GetMessageClass(kind).FromString(answer.grpc_message_content)

        return call


@dataclass
class Hosted:
    """A run in the hands of an executor."""

    stub: Any
    work: appio_pb2.Work

    @property
    def run_id(self) -> int:
        return self.work.run.run_id

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("trellis-token", self.work.token)]

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=120)

    def instruction(self, node_id: int, content: Mapping[str, Record] | None = None, **changes: Any) -> Letter:
        chunk = changes.pop("chunk", 1 << 20)
        values: dict[str, Any] = {
            "run_id": self.run_id,
            "message_id": "",
            "src_node_id": 1,
            "dst_node_id": node_id,
            "reply_to_message_id": "",
            "group_id": "1",
            "ttl": 3600.0,
            "message_type": "train",
            "created_at": time.time(),
        }
        return Letter.of(Metadata(**{**values, **changes}), content or records(), chunk)

    async def push(self, *letters: Letter, inline: bool = True) -> appio_pb2.PushMessagesResponse:
        request = appio_pb2.PushMessagesRequest(messages=[letter.to_appio(inline=inline) for letter in letters])
        answer = await self.call("PushMessages", request)
        assert isinstance(answer, appio_pb2.PushMessagesResponse)
        return answer

    async def send_objects(self, objects: Mapping[str, bytes], part: int = 1 << 20) -> list[str]:
        def parts() -> Any:
            for object_id, content in objects.items():
                for offset in range(0, len(content), part):
                    yield appio_pb2.ObjectPart(
                        object_id=object_id, offset=offset, size=len(content), data=content[offset : offset + part]
                    )

        return list((await self.stub.PushObjects(parts(), metadata=self.metadata, timeout=300)).stored)

    def replies(self, *instructions: str) -> Any:
        return self.stub.StreamReplies(
            appio_pb2.StreamRepliesRequest(instruction_ids=list(instructions)), metadata=self.metadata, timeout=300
        )


@dataclass
class Network:
    """A SuperLink, and channels to its three ports."""

    link: SuperLink
    core: Core
    fab: bytes
    control: Any
    fleet: Any
    appio: Any
    channels: dict[str, Any]

    async def submit(self, **more: Any) -> int:
        answer = await self.control.StartRun(
            control_pb2.StartRunRequest(fab=run_pb2.Fab(content=self.fab), **more), timeout=30
        )
        return int(answer.run_id)

    async def node(self, *, old: bool = False) -> StockNode:
        node = StockNode(self.fleet, old)
        await node.join()
        return node

    async def held(self, surface: str, count: int = 1) -> None:
        """Returns once so many calls are held there."""
        registry = self.link.metrics.registry
        async with asyncio.timeout(10):
            while registry.get_sample_value("trellis_held_calls", {"surface": surface}) != count:
                await asyncio.sleep(0.005)

    async def running(self) -> Hosted:
        """A run that an executor hosts."""
        executor = Executor(self.appio)
        await executor.attend()
        await self.submit()
        hosted = await executor.work()
        await hosted.call("StartRunning", appio_pb2.StartRunningRequest())
        return hosted


def settings(folder: Path, **changes: Any) -> SuperLinkSettings:
    values: dict[str, Any] = {
        "insecure": True,
        "host": "127.0.0.1",
        "port": 0,
        "serverappio_api_address": "127.0.0.1:0",
        "fleet_api_address": "127.0.0.1:0",
        "control_api_address": "127.0.0.1:0",
        "database": str(folder / "superlink.db"),
    }
    return SuperLinkSettings(**{**values, **changes})


@asynccontextmanager
async def network(
    folder: Path, *, secret_files: Mapping[str, Path] | None = None, **changes: Any
) -> AsyncIterator[Network]:
    """`secret_files`: where the secrets among `changes` come from."""
    chosen = settings(folder, **changes)
    chosen._secret_files.update(secret_files or {})
    core = await Core.open(core_config(chosen))
    link = SuperLink(chosen, core, await core.key(KEY))
    await link.start()
    bound = {"appio": link.appio.bound, "fleet": link.fleet.bound, "control": link.control.bound}
    channels = {name: grpc.aio.insecure_channel(address, options=OPTIONS) for name, address in bound.items()}
    try:
        yield Network(
            link,
            core,
            make_fab(folder / "app"),
            ControlStub(channels["control"]),
            FleetStub(channels["fleet"]),
            ServerAppIOStub(channels["appio"]),
            channels,
        )
    finally:
        for channel in channels.values():
            await channel.close(None)
        await link.stop(1.0)
        await core.close()


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status and details with which a call ends that must not succeed."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call was answered")
