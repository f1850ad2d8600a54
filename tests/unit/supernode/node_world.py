"""What the SuperNode's tests share: a small SuperLink that follows WIRE.md, executors, and the node between them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from trellis_kit.federation import free_ports
from trellis_kit.lifecycle import Stop
from trellis_supernode.main import serve
from trellis_supernode.settings import SupernodeSettings
from trellis_wire import config
from trellis_wire.fab import build, fab_hash
from trellis_wire.identity import verify_grpc
from trellis_wire.messages import MessageError, Metadata
from trellis_wire.objects import Tree, object_id
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.appio.appio_pb2_grpc import (
    ClientAppIOStub,
    NodeObjectsServicer,
    add_NodeObjectsServicer_to_server,
)
from trellis_wire.pb.edge import fleet_pb2, fleet_pb2_grpc, message_pb2, records_pb2, run_pb2
from trellis_wire.records import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Record,
    deflate,
    deflate_message,
    inflate,
    inflate_message,
)
from waits import until

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
"""
NODE_ID = 2**63 + 12345  # larger than SQLite's integers
RUN = 2**64 - 7
SMALL = 64 * 1024
END: Any = vars(grpc.aio)["EOF"]  # which its type stubs have forgotten

Objects = dict[str, bytes]


def make_fab(folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "small.py").write_text("server = client = None\n")
    return build(folder)


def npy(data: bytes) -> bytes:
    """What numpy.save writes for an array of these bytes."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(data)},), }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


def model(data: bytes, number: int = 1) -> dict[str, Record]:
    array = Array("uint8", (len(data),), npy(data))
    return {"arrays": ArrayRecord({"w": array}), "config": ConfigRecord({"n": number})}


def settings_of(state_dir: Path, **values: Any) -> SupernodeSettings:
    return SupernodeSettings(insecure=True, state_dir=state_dir, grace=3.3, **values)


# ---- the SuperLink ---------------------------------------------------------------------------------------------------


@dataclass
class Instruction:
    metadata: Metadata
    tree: Tree
    delivered: int = 0
    confirmed: bool = False

    @property
    def id(self) -> str:
        return self.tree.object_id


@dataclass
class Link(fleet_pb2_grpc.FleetServicer):
    """Fleet as WIRE.md 2 describes it; with `inline` as our own SuperLink is, else as stock is. With `streams` it
    serves NodeObjects too: `gate` is waited for before each object that it hands out.

    `failures` holds for each method the errors that it answers next, `calls` the requests that came.
    """

    inline: bool = True
    streams: bool = False
    known_key: bytes | None = None
    registration: bool = True
    finished: set[int] = field(default_factory=set)
    fabs: dict[str, bytes] = field(default_factory=dict)
    run_fab: str = ""
    fab_id: str = "somebody/small"
    account: str = "alice"
    signatures: dict[str, str] = field(default_factory=dict)
    objects: Objects = field(default_factory=dict)
    late: set[str] = field(default_factory=set)  # registered, content not there yet
    instructions: dict[str, Instruction] = field(default_factory=dict)
    replies: dict[str, tuple[message_pb2.Message, Tree]] = field(default_factory=dict)
    pushes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[grpc.StatusCode]] = field(default_factory=lambda: defaultdict(list))
    calls: list[tuple[str, Any]] = field(default_factory=list)
    online: bool = False
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    server: Any = None
    address: str = ""
    number: int = 0
    gate: Callable[[str], Awaitable[None]] | None = None

    # ---- what tests do ----

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        fleet_pb2_grpc.add_FleetServicer_to_server(self, self.server)
        if self.streams:
            add_NodeObjectsServicer_to_server(Streams(self), self.server)
        address = self.address or "127.0.0.1:0"
        if credentials is None:
            port = self.server.add_insecure_port(address)
        else:
            port = self.server.add_secure_port(address, credentials)
        self.address = f"127.0.0.1:{port}"
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(None)

    async def instruct(
        self, content: Mapping[str, Record] | None = None, *, run_id: int = RUN, ttl: float = 3600.0
    ) -> Instruction:
        """An instruction to the node, ready to be pulled."""
        self.number += 1
        metadata = Metadata(
            run_id=run_id,
            message_id="",
            src_node_id=1,
            dst_node_id=NODE_ID,
            reply_to_message_id="",
            group_id=str(self.number),
            ttl=ttl,
            message_type="train",
            created_at=time.time(),
        )
        bundle = deflate_message(metadata, content or model(b"x" * 100, self.number), None)
        self.objects |= {one: bytes(source.content()) for one, source in bundle.objects.items()}
        found = Instruction(replace(metadata, message_id=bundle.tree.object_id), bundle.tree)
        self.instructions[found.id] = found
        async with self.news:
            self.news.notify_all()
        return found

    def called(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def complete(self, reply_id: str) -> bool:
        return all(one in self.objects for one in self.replies[reply_id][1].post_order())

    def answers(self, instruction: Instruction) -> list[message_pb2.Message]:
        """The complete replies to an instruction."""
        return [
            message
            for message, tree in self.replies.values()
            if message.metadata.reply_to_message_id == instruction.id and self.complete(tree.object_id)
        ]

    def records(self, reply: message_pb2.Message) -> dict[str, Record]:
        _, _, records = inflate_message(self.replies[reply.metadata.message_id][1], self.objects.__getitem__)
        return dict(records or {})

    # ---- what the node calls ----

    async def _begin(self, method: str, request: Any, context: Any) -> None:
        credential = verify_grpc(context.invocation_metadata())
        self.calls.append((method, request))
        if self.failures[method]:
            await context.abort(self.failures[method].pop(0), f"{method} fails on purpose")
        if method not in ("RegisterNode", "ActivateNode") and credential.public_key != self.known_key:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid node ID")

    async def _goes_on(self, run_id: int, context: Any) -> None:
        if run_id in self.finished:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "Run is finished. Stopped by user.")

    async def RegisterNode(self, request: Any, context: Any) -> Any:
        await self._begin("RegisterNode", request, context)
        if not self.registration or self.known_key is not None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Public key already in use")
        self.known_key = request.public_key
        return fleet_pb2.RegisterNodeFleetResponse(node_id=NODE_ID)

    async def ActivateNode(self, request: Any, context: Any) -> Any:
        await self._begin("ActivateNode", request, context)
        if request.public_key != self.known_key:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "No SuperNode with this public key")
        self.online = True
        return fleet_pb2.ActivateNodeResponse(node_id=NODE_ID)

    async def DeactivateNode(self, request: Any, context: Any) -> Any:
        await self._begin("DeactivateNode", request, context)
        self.online = False
        return fleet_pb2.DeactivateNodeResponse()

    async def _not_served(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not called by nodes of this life cycle")

    CreateNode = DeleteNode = UnregisterNode = _not_served

    async def SendNodeHeartbeat(self, request: Any, context: Any) -> Any:
        await self._begin("SendNodeHeartbeat", request, context)
        return fleet_pb2.SendNodeHeartbeatResponse(success=True)

    def _deliverable(self, request: Any) -> list[Instruction]:
        answered = {message.metadata.reply_to_message_id for message, _ in self.replies.values()}
        working_on = set(request.trellis_working_on)
        waiting = [
            one
            for one in self.instructions.values()
            if one.id not in answered | working_on
            and one.metadata.expires_at > time.time()
            and one.metadata.run_id not in self.finished
        ]
        if not self.inline:
            waiting = [one for one in waiting if one.delivered == 0]
        return waiting[: max(1, request.trellis_capacity) if self.inline else 1]

    async def PullMessages(self, request: Any, context: Any) -> Any:
        await self._begin("PullMessages", request, context)
        answer = fleet_pb2.PullMessagesResponse()
        if self.inline:
            announced = "inline,objects" if self.streams else "inline"
            await context.send_initial_metadata((("trellis-capabilities", announced),))
            answer.trellis_ended_runs.extend(self.finished & set(request.trellis_known_runs))
            if not answer.trellis_ended_runs:
                async with self.news:
                    try:
                        await asyncio.wait_for(self.news.wait_for(lambda: self._deliverable(request)), 5)
                    except TimeoutError:
                        return answer
        for one in self._deliverable(request):
            one.delivered += 1
            answer.messages_list.append(
                message_pb2.Message(metadata=one.metadata.to_edge(), content=records_pb2.RecordDict())
            )
            answer.message_object_trees.append(one.tree.to_edge())
            if self.inline:
                answer.trellis_objects.extend(
                    fleet_pb2.InlineObject(object_id=each, content=self.objects[each])
                    for each in one.tree.post_order()
                    if len(self.objects[each]) <= SMALL
                )
        return answer

    async def GetRun(self, request: Any, context: Any) -> Any:
        await self._begin("GetRun", request, context)
        await self._goes_on(request.run_id, context)
        return run_pb2.GetRunResponse(
            run=run_pb2.Run(
                run_id=request.run_id,
                fab_id=self.fab_id,
                fab_version="1.2.3",
                fab_hash=self.run_fab,
                override_config={"rounds": records_scalar(7)},
                account_name=self.account,
                federation="@olga/heart",
                status=run_pb2.RunStatus(status="running"),
            )
        )

    async def GetFab(self, request: Any, context: Any) -> Any:
        await self._begin("GetFab", request, context)
        return run_pb2.GetFabResponse(
            fab=run_pb2.Fab(
                hash_str=request.hash_str,
                content=self.fabs.get(request.hash_str, b""),
                verifications=self.signatures,
            )
        )

    async def PullObject(self, request: Any, context: Any) -> Any:
        await self._begin("PullObject", request, context)
        await self._goes_on(request.run_id, context)
        if request.object_id in self.late:
            return fleet_pb2.PullObjectResponse(object_found=True, object_available=False)
        content = self.objects.get(request.object_id)
        return fleet_pb2.PullObjectResponse(
            object_found=content is not None, object_available=content is not None, object_content=content or b""
        )

    async def ConfirmMessageReceived(self, request: Any, context: Any) -> Any:
        await self._begin("ConfirmMessageReceived", request, context)
        if request.message_object_id in self.instructions:
            self.instructions[request.message_object_id].confirmed = True
        return fleet_pb2.ConfirmMessageReceivedResponse()

    async def PushMessages(self, request: Any, context: Any) -> Any:
        await self._begin("PushMessages", request, context)
        (message,), (proto,) = request.messages_list, request.message_object_trees
        await self._goes_on(message.metadata.run_id, context)
        tree = Tree.from_edge(proto)
        assert message.metadata.message_id == tree.object_id
        assert message.HasField("content") != message.HasField("error")
        for one in request.trellis_objects:
            assert self.inline
            assert object_id(one.content) == one.object_id
            self.objects[one.object_id] = one.content
        self.replies[tree.object_id] = (message, tree)
        self.pushes[tree.object_id] += 1
        missing = [one for one in tree.post_order() if one not in self.objects]
        return fleet_pb2.PushMessagesResponse(objects_to_push=missing, session_id="session-1")

    async def PushObject(self, request: Any, context: Any) -> Any:
        await self._begin("PushObject", request, context)
        assert request.session_id == "session-1"
        assert object_id(request.object_content) == request.object_id
        self.objects[request.object_id] = request.object_content
        return fleet_pb2.PushObjectResponse(stored=True)


class Streams(NodeObjectsServicer):
    """NodeObjects of a Link."""

    def __init__(self, link: Link) -> None:
        self.link = link

    async def _run(self, method: str, request: Any, context: Any) -> None:
        await self.link._begin(method, request, context)
        headers = dict(context.invocation_metadata())
        assert headers["trellis-node-id"] == str(NODE_ID)
        await self.link._goes_on(int(headers["trellis-run-id"]), context)

    async def PullObjects(self, request: Any, context: Any) -> AsyncIterator[appio_pb2.ObjectPart]:
        await self._run("PullObjects", request, context)
        for one in request.object_ids:
            if self.link.gate is not None:
                await self.link.gate(one)
            if self.link.failures["an object"]:
                await context.abort(self.link.failures["an object"].pop(0), "an object fails on purpose")
            if one not in self.link.objects:
                await context.abort(grpc.StatusCode.NOT_FOUND, "Object is not here.")
            async for part in parts_of(self.link.objects, [one]):
                yield part

    async def PushObjects(self, request_iterator: Any, context: Any) -> appio_pb2.PushObjectsResponse:
        await self._run("PushObjects", None, context)
        wanted = {one for _, tree in self.link.replies.values() for one in tree.post_order()}
        stored = []
        content = bytearray()
        async for part in request_iterator:
            assert part.offset == len(content)
            content += part.data
            if len(content) == part.size:
                assert object_id(content) == part.object_id
                assert part.object_id in wanted
                self.link.objects[part.object_id] = bytes(content)
                stored.append(part.object_id)
                content.clear()
                if self.link.failures["an object pushed"]:
                    await context.abort(self.link.failures["an object pushed"].pop(0), "fails on purpose")
        return appio_pb2.PushObjectsResponse(stored=stored)


def records_scalar(value: int) -> Any:
    return config.to_edge({"x": value})["x"]


# ---- the executor ----------------------------------------------------------------------------------------------------


class Hand:
    """An executor: attends, is handed work, and does with it what the test wants."""

    def __init__(
        self,
        address: str,
        name: str = "hand",
        slots: int = 1,
        join_token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
        ]
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=options)
        self.stub: Any = ClientAppIOStub(self.channel)
        self.name, self.slots, self.join_token = name, slots, join_token
        self.holding: list[str] = []
        self.orders: asyncio.Queue[appio_pb2.Order] = asyncio.Queue()
        self.call: Any = None
        self.reading: asyncio.Task[None] | None = None

    async def attend(self) -> Hand:
        metadata = (("trellis-join-token", self.join_token),) if self.join_token else ()
        self.call = self.stub.Attend(metadata=metadata, wait_for_ready=True)
        hello = appio_pb2.ExecutorHello(executor_id=self.name, slots=self.slots, holding=self.holding, host="here")
        await self.call.write(appio_pb2.ExecutorReport(hello=hello))
        first = await self.call.read()
        assert first.welcome
        await self.report(free_slots=self.slots - len(self.holding))
        self.reading = asyncio.create_task(self._read(self.call))
        return self

    async def _read(self, call: Any) -> None:
        while (order := await call.read()) is not END:
            await self.orders.put(order)

    async def report(self, **values: Any) -> None:
        await self.call.write(appio_pb2.ExecutorReport(**values))

    async def vanish(self) -> None:
        """The connection ends without a word."""
        self.call.cancel()
        if self.reading is not None:
            await asyncio.gather(self.reading, return_exceptions=True)

    async def close(self) -> None:
        if self.call is not None:
            await self.vanish()
        await self.channel.close(None)

    async def work(self, timeout: float = 10.0) -> appio_pb2.Work:
        order = await asyncio.wait_for(self.orders.get(), timeout)
        assert order.HasField("work"), order
        self.holding.append(order.work.token)
        await self.report(free_slots=self.slots - len(self.holding))
        return order.work

    async def objects(self, work: appio_pb2.Work, parcel: appio_pb2.Parcel) -> Objects:
        found = {one.object_id: one.content for one in parcel.objects}
        missing = [one for one in Tree.from_appio(parcel.tree).post_order() if one not in found]
        if missing:
            parts: dict[str, bytearray] = defaultdict(bytearray)
            request = appio_pb2.PullObjectsRequest(object_ids=missing)
            async for part in self.stub.PullObjects(request, metadata=token(work)):
                assert part.offset == len(parts[part.object_id])
                parts[part.object_id] += part.data
            found |= {one: bytes(data) for one, data in parts.items()}
        assert all(object_id(content) == one for one, content in found.items())
        return found

    async def read(self, work: appio_pb2.Work) -> tuple[Metadata, dict[str, Record]]:
        objects = await self.objects(work, work.instruction)
        metadata, _, records = inflate_message(Tree.from_appio(work.instruction.tree), objects.__getitem__)
        return metadata, dict(records or {})

    async def state(self, work: appio_pb2.Work) -> int | None:
        """The counter that `finish` leaves in the state."""
        if not work.HasField("state"):
            return None
        objects = await self.objects(work, work.state)
        return int(inflate(Tree.from_appio(work.state.tree), objects.__getitem__)["count"].items["n"])  # type: ignore[arg-type]

    async def finish(
        self,
        work: appio_pb2.Work,
        content: Mapping[str, Record] | None = None,
        *,
        count: int | None = None,
        error: MessageError | None = None,
        **changes: Any,
    ) -> list[str]:
        """Sends a reply, with its large objects if they are asked for; what was asked for. `changes`: of its
        metadata."""
        metadata, _ = await self.read(work)
        request, objects = reply_to(replace(metadata, **changes), content or model(b"y" * 50), count, error)
        missing = list((await self._finish(work, request)).missing_objects)
        if missing:
            await self.stub.PushObjects(parts_of(objects, missing), metadata=token(work))
            assert not (await self._finish(work, request)).missing_objects
        await self.done(work)
        return missing

    async def _finish(self, work: appio_pb2.Work, request: appio_pb2.FinishTaskRequest) -> Any:
        return await self.stub.FinishTask(request, metadata=token(work))

    async def done(self, work: appio_pb2.Work) -> None:
        self.holding.remove(work.token)
        await self.report(free_slots=self.slots - len(self.holding))


def token(work: appio_pb2.Work) -> tuple[tuple[str, str], ...]:
    return (("trellis-token", work.token),)


def reply_metadata(instruction: Metadata) -> Metadata:
    return replace(
        instruction,
        message_id="",
        src_node_id=instruction.dst_node_id,
        dst_node_id=instruction.src_node_id,
        reply_to_message_id=instruction.message_id,
        created_at=time.time(),
        ttl=60.0,
    )


def reply_to(
    instruction: Metadata, content: Mapping[str, Record], count: int | None, error: MessageError | None = None
) -> tuple[appio_pb2.FinishTaskRequest, Objects]:
    bundle = deflate_message(reply_metadata(instruction), None if error else content, error)
    objects = {one: bytes(source.content()) for one, source in bundle.objects.items()}
    request = appio_pb2.FinishTaskRequest(reply=parcel_of(bundle.tree, objects), runtime=1.5)
    if count is not None:
        state = deflate({"count": ConfigRecord({"n": count})})
        contents = {one: bytes(source.content()) for one, source in state.objects.items()}
        objects |= contents
        request.state.CopyFrom(parcel_of(state.tree, contents))
    return request, objects


def parcel_of(tree: Tree, objects: Objects) -> appio_pb2.Parcel:
    return appio_pb2.Parcel(
        tree=tree.to_appio(),
        objects=[appio_pb2.Object(object_id=one, content=data) for one, data in objects.items() if len(data) <= SMALL],
    )


async def parts_of(objects: Objects, wanted: list[str], size: int = 1 << 20) -> AsyncIterator[appio_pb2.ObjectPart]:
    for one in wanted:
        data = objects[one]
        for start in range(0, len(data), size):
            yield appio_pb2.ObjectPart(object_id=one, offset=start, size=len(data), data=data[start : start + size])


# ---- the node between them -------------------------------------------------------------------------------------------


class Process:
    """`trellis-supernode` as a process; `log` is what it wrote once it has ended."""

    def __init__(self, argv: list[str], environ: Mapping[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trellis_supernode.main", *argv],
            env={**clean, **environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""

    async def ended(self) -> int:
        _, self.log = await asyncio.to_thread(self._process.communicate)
        return self._process.returncode

    async def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        if not self.log:
            await self.ended()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.ended()


@dataclass
class World:
    """One SuperLink, one SuperNode's state and its port; nodes and hands come and go."""

    link: Link
    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    hands: list[Hand] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)

    @property
    def appio(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def node(self, **values: Any) -> AsyncIterator[Stop]:
        """A SuperNode's life in this process: it ends in order with the block."""
        settings = settings_of(
            self.folder / "state", superlink=self.link.address, clientappio_api_address=self.appio, **values
        )
        stop = Stop(settings.grace)
        self.task = asyncio.create_task(serve(settings, stop))
        try:
            yield stop
        finally:
            stop.request()
            await asyncio.wait([self.task], timeout=15)
            assert self.task.done()
            self.task.result()

    def process(self, *flags: str, insecure: bool = True, **environ: str) -> Process:
        """A SuperNode as a program of its own."""
        argv = ["--insecure"] if insecure else []
        argv += ["--superlink", self.link.address, "--clientappio-api-address", self.appio]
        argv += ["--state-dir", str(self.folder / "state"), "--grace", "10", *flags]
        process = Process(argv, environ)
        self.processes.append(process)
        return process

    async def hand(self, name: str = "hand", slots: int = 1, **values: Any) -> Hand:
        hand = Hand(self.appio, name, slots, **values)
        self.hands.append(hand)
        return await asyncio.wait_for(hand.attend(), 10)

    async def answered(self, instruction: Instruction, timeout: float = 10.0) -> message_pb2.Message:
        await until(lambda: self.link.answers(instruction), "the reply", timeout)
        (answer,) = self.link.answers(instruction)
        return answer


@asynccontextmanager
async def world(folder: Path, *, inline: bool = True, streams: bool = False) -> AsyncIterator[World]:
    link = Link(inline=inline, streams=streams)
    content = make_fab(folder / "app")
    link.run_fab = fab_hash(content)
    link.fabs[link.run_fab] = content
    await link.start()
    found = World(link, folder)
    try:
        yield found
    finally:
        for process in found.processes:
            await process.kill()
        for hand in found.hands:
            await hand.close()
        await link.stop()
