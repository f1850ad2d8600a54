"""A small SuperLink and SuperNode in one: what executors talk to, which can be killed and started again."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from trellis_kit.lifecycle import Stop
from trellis_runner.transfer import pack
from trellis_wire import fab
from trellis_wire.messages import Metadata
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2, appio_pb2_grpc
from trellis_wire.records import Record, deflate_message, inflate, inflate_message
from unit.runner.runner_world import instruction, interpreter
from waits import until

PYPROJECT = """
[project]
name = "probe"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = ["flwr>=1.20"]

[tool.flwr.app]
publisher = "test"

[tool.flwr.app.components]
serverapp = "main_app:app"
clientapp = "main_app:app"

[tool.flwr.app.config]
rounds = 3
"""


class Hub(appio_pb2_grpc.ServerAppIOServicer, appio_pb2_grpc.ClientAppIOServicer):
    """Remembers over restarts all that real ones keep on disk."""

    def __init__(self) -> None:
        self.join_token: str | None = None
        self.hellos: list[appio_pb2.ExecutorHello] = []
        self.reports: list[str] = []
        self.free = 0
        self.objects: dict[str, bytes] = {}
        self.fabs: dict[str, bytes] = {}
        self.pushed: list[str] = []
        self.pulled: list[str] = []
        self.calls: list[str] = []
        self.logs: dict[str, dict[int, str]] = {}
        self.finished: dict[str, Any] = {}
        self.instructions: dict[str, appio_pb2.Parcel] = {}
        self.replies: dict[str, appio_pb2.Parcel] = {}
        self.artifacts: dict[str, tuple[str, bytes]] = {}  # by token: name and content
        self.confirmed: list[str] = []
        self.subscriptions: list[list[str]] = []
        self.running: list[str] = []
        self.refuse: dict[int, str] = {}  # node id -> why its messages are not taken
        self.lose: dict[str, int] = {}  # method -> how many answers get lost
        self.break_pull_after: int | None = None  # parts
        self.slow_logs: asyncio.Event | None = None
        self.port = 0
        self._orders: asyncio.Queue[appio_pb2.Order] | None = None
        self._waiting: list[appio_pb2.Order] = []
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    # ---- its life

    async def start(self) -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", -1)])
        appio_pb2_grpc.add_ServerAppIOServicer_to_server(self, server)
        appio_pb2_grpc.add_ClientAppIOServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def kill(self) -> None:
        """Every call breaks off; what it remembers stays."""
        if self._server is not None:
            await self._server.stop(None)
        self._server = None
        self._orders = None

    def order(self, **order: Any) -> None:
        """Give an order, at once or to the next who attends."""
        made = appio_pb2.Order(**order)
        if self._orders is None:
            self._waiting.append(made)
        else:
            self._orders.put_nowait(made)

    # ---- what tests put in and take out

    def app(self, folder: Path, source: str, body: str) -> str:
        """The hash of a FAB of one module."""
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT)
        (folder / "main_app.py").write_text(source + textwrap.indent(textwrap.dedent(body), "    "))
        content = fab.build(folder)
        self.fabs[fab.fab_hash(content)] = content
        return fab.fab_hash(content)

    def message(self, records: Mapping[str, Record], metadata: Metadata) -> appio_pb2.Parcel:
        """A parcel whose large objects have to be pulled."""
        bundle = deflate_message(metadata, records)
        for object_id, source in bundle.objects.items():
            self.objects[object_id] = source.content()
        return pack(bundle.tree, bundle.objects)

    def task(self, token: str, fab_hash: str, records: Mapping[str, Record] | None = None, **more: Any) -> None:
        """Order a ClientApp's work."""
        run = appio_pb2.RunInfo(run_id=5, node_id=7, fab_hash=fab_hash, fab_id="test/probe", fab_version="1.0.0")
        parcel = self.message(records or {}, instruction())
        self.order(work=appio_pb2.Work(token=token, run=run, instruction=parcel, **more))

    def run(self, token: str, fab_hash: str) -> None:
        """Order a ServerApp's work."""
        run = appio_pb2.RunInfo(run_id=5, node_id=1, fab_hash=fab_hash, fab_id="test/probe", fab_version="1.0.0")
        self.order(work=appio_pb2.Work(token=token, run=run))

    def read(self, parcel: appio_pb2.Parcel) -> tuple[Metadata, Any, Mapping[str, Record] | None]:
        """A message that has arrived."""
        self._keep(parcel)
        return inflate_message(Tree.from_appio(parcel.tree), self.objects.__getitem__)

    def read_records(self, parcel: appio_pb2.Parcel) -> Mapping[str, Record]:
        """A state that has arrived."""
        self._keep(parcel)
        return inflate(Tree.from_appio(parcel.tree), self.objects.__getitem__)

    async def finish_of(self, token: str, timeout: float = 15.0) -> Any:
        """How the work ended."""
        await until(lambda: token in self.finished, f"the end of {token}", timeout)
        return self.finished[token]

    async def reply(self, instruction_id: str, records: Mapping[str, Record]) -> str:
        """A node's reply; its message id."""
        sent, _, _ = self.read(self.instructions[instruction_id])
        metadata = instruction(
            src_node_id=sent.dst_node_id, dst_node_id=1, reply_to_message_id=instruction_id, message_id=""
        )
        parcel = self.message(records, metadata)
        async with self._changed:
            self.replies[instruction_id] = parcel
            self._changed.notify_all()
        return str(parcel.tree.object_id)

    def log_of(self, token: str) -> str:
        return "".join(text for _, text in sorted(self.logs.get(token, {}).items()))

    # ---- Attend

    async def Attend(self, request_iterator: Any, context: Any) -> AsyncIterator[appio_pb2.Order]:
        if self.join_token is not None and _header(context, "trellis-join-token") != self.join_token:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The join token is missing or wrong.")
        reports = aiter(request_iterator)
        self.hellos.append((await anext(reports)).hello)
        orders: asyncio.Queue[appio_pb2.Order] = asyncio.Queue()
        for order in self._waiting:
            orders.put_nowait(order)
        self._waiting.clear()
        self._orders = orders
        listening = asyncio.create_task(self._listen(reports))
        try:
            yield appio_pb2.Order(welcome=True)
            while True:
                yield await orders.get()
        finally:
            listening.cancel()

    async def _listen(self, reports: AsyncIterator[appio_pb2.ExecutorReport]) -> None:
        async for report in reports:
            match report.WhichOneof("report"):
                case "free_slots":
                    self.free = report.free_slots
                    self.reports.append(f"free {report.free_slots}")
                case "handed_back":
                    self.reports.append(f"back {report.handed_back}")
                case _:
                    self.reports.append("alive")

    # ---- what both have

    async def _called(self, context: Any, method: str) -> str:
        self.calls.append(method)
        return _header(context, "trellis-token")

    async def _answer(self, context: Any, method: str) -> None:
        if self.lose.get(method, 0) > 0:
            self.lose[method] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The answer got lost.")

    def _keep(self, parcel: appio_pb2.Parcel) -> list[str]:
        for one in parcel.objects:
            self.objects[one.object_id] = one.content
        tree = Tree.from_appio(parcel.tree)
        return [object_id for object_id in tree.post_order() if object_id not in self.objects]

    async def GetFab(self, request: Any, context: Any) -> Any:
        await self._called(context, "GetFab")
        await self._answer(context, "GetFab")
        if request.fab_hash not in self.fabs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "No such FAB.")
        return appio_pb2.GetFabResponse(fab_hash=request.fab_hash, content=self.fabs[request.fab_hash])

    async def PullObjects(self, request: Any, context: Any) -> AsyncIterator[appio_pb2.ObjectPart]:
        await self._called(context, "PullObjects")
        for object_id in request.object_ids:
            content = self.objects[object_id]
            self.pulled.append(object_id)
            for offset in range(0, len(content), 1 << 20):
                if self.break_pull_after is not None:
                    self.break_pull_after -= 1
                    if self.break_pull_after < 0:
                        self.break_pull_after = None
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "Broken off.")
                data = content[offset : offset + (1 << 20)]
                yield appio_pb2.ObjectPart(object_id=object_id, offset=offset, size=len(content), data=data)

    async def PushObjects(self, request_iterator: Any, context: Any) -> Any:
        await self._called(context, "PushObjects")
        content = bytearray()
        stored = []
        async for part in request_iterator:
            assert part.offset == len(content)
            content += part.data
            if len(content) == part.size:
                self.objects[part.object_id] = bytes(content)
                self.pushed.append(part.object_id)
                stored.append(part.object_id)
                content.clear()
                await self._answer(context, "PushObjects")
        return appio_pb2.PushObjectsResponse(stored=stored)

    async def PushArtifact(self, requests: Any, context: Any) -> Any:
        token = await self._called(context, "PushArtifact")
        parts = [part async for part in requests]
        self.artifacts[token] = (parts[0].name, b"".join(part.data for part in parts))
        await self._answer(context, "PushArtifact")
        return appio_pb2.PushArtifactResponse()

    async def PushLogs(self, request: Any, context: Any) -> Any:
        token = await self._called(context, "PushLogs")
        if self.slow_logs is not None:
            await self.slow_logs.wait()
        kept = self.logs.setdefault(token, {})
        kept.setdefault(request.sequence, "".join(line.text for line in request.lines))
        await self._answer(context, "PushLogs")
        return appio_pb2.PushLogsResponse()

    # ---- ClientAppIO

    async def FinishTask(self, request: Any, context: Any) -> Any:
        token = await self._called(context, "FinishTask")
        missing = self._keep(request.reply) + (self._keep(request.state) if request.HasField("state") else [])
        if not missing:
            self.finished.setdefault(token, request)
        await self._answer(context, "FinishTask")
        return appio_pb2.FinishTaskResponse(missing_objects=dict.fromkeys(missing))

    # ---- ServerAppIO

    async def StartRunning(self, request: Any, context: Any) -> Any:
        self.running.append(await self._called(context, "StartRunning"))
        return appio_pb2.StartRunningResponse()

    async def GetNodes(self, request: Any, context: Any) -> Any:
        await self._called(context, "GetNodes")
        return appio_pb2.GetNodesResponse(nodes=[appio_pb2.NodeRef(node_id=7), appio_pb2.NodeRef(node_id=8)])

    async def PushMessages(self, request: Any, context: Any) -> Any:
        await self._called(context, "PushMessages")
        missing: list[str] = []
        refusals = []
        for parcel in request.messages:
            missing += self._keep(parcel)
            metadata, _, _ = _root(parcel)
            refusals.append(self.refuse.get(metadata.dst_node_id, ""))
            if not refusals[-1]:
                self.instructions[parcel.tree.object_id] = parcel
        await self._answer(context, "PushMessages")
        return appio_pb2.PushMessagesResponse(refusals=refusals, missing_objects=dict.fromkeys(missing))

    async def StreamReplies(self, request: Any, context: Any) -> AsyncIterator[appio_pb2.Reply]:
        await self._called(context, "StreamReplies")
        left = list(request.instruction_ids)
        self.subscriptions.append(list(left))
        while left:
            async with self._changed:
                await self._changed.wait_for(lambda: any(one in self.replies for one in left))
                there = [one for one in left if one in self.replies]
            for one in there:
                left.remove(one)
                yield appio_pb2.Reply(instruction_id=one, parcel=self.replies[one])

    async def ConfirmReceived(self, request: Any, context: Any) -> Any:
        await self._called(context, "ConfirmReceived")
        self.confirmed += request.message_ids
        await self._answer(context, "ConfirmReceived")
        return appio_pb2.ConfirmReceivedResponse()

    async def FinishRun(self, request: Any, context: Any) -> Any:
        token = await self._called(context, "FinishRun")
        missing = self._keep(request.state) if request.HasField("state") else []
        if not missing:
            self.finished.setdefault(token, request)
        await self._answer(context, "FinishRun")
        return appio_pb2.FinishRunResponse(missing_objects=missing)


def _header(context: Any, name: str) -> str:
    return str(dict(context.invocation_metadata()).get(name, ""))


def _root(parcel: appio_pb2.Parcel) -> Any:
    from trellis_wire.messages import decode_message_object

    return decode_message_object(next(o.content for o in parcel.objects if o.object_id == parcel.tree.object_id))


@asynccontextmanager
async def attending(
    serve: Callable[[Any, Stop], Any], settings: type[Any], address: str, hub: Hub, folder: Path, **more: Any
) -> AsyncIterator[tuple[Stop, asyncio.Task[int]]]:
    """An executor in this process; is asked to stop at the end."""
    values = {
        "insecure": True,
        address: f"127.0.0.1:{hub.port}",
        "guest_python": interpreter("1.41.0"),
        "work_dir": folder / "executor",
        **more,
    }
    stop = Stop(values.pop("grace", 5.0))
    task = asyncio.create_task(serve(settings(**values), stop))
    try:
        await until(lambda: bool(hub.hellos) or task.done(), "the executor")
        yield stop, task
    finally:
        stop.request()
        await asyncio.wait({task}, timeout=15)


def tokens(calls: Iterable[str], method: str) -> int:
    """How often a method was called."""
    return list(calls).count(method)


def names(objects: Sequence[str]) -> set[str]:
    return set(objects)
