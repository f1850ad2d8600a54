"""A SuperLink as a process, peers that speak to it over real connections, and what they may have changed in it."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from edge_world import OPTIONS, Executor, Hosted, Letter, StockNode, make_fab, records
from grpc import StatusCode
from trellis_kit.federation import Addresses, Federation, Plan, Role
from trellis_testing import Peer
from trellis_testing.environment import clean_environment
from trellis_wire.messages import Metadata, encode_message_object
from trellis_wire.objects import Tree, encode_object, object_id
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.appio.appio_pb2_grpc import ServerAppIOStub
from trellis_wire.pb.edge import control_pb2, run_pb2
from trellis_wire.pb.edge.control_pb2_grpc import ControlStub
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub

LOG_SECONDS = 5.0

# What the SuperLink writes by the clock, not because somebody asked for it.
BEATS = "beats"
BY_THE_CLOCK = {"nodes": {"online_until"}, "runs": {"bytes_sent", "bytes_received"}}

# Objects that are announced in a tree as leaves, under their right ids, and are no such objects.
HEADLESS = b"this object has no head"
PICKLE = b"Pickle  3\0abc"
SHORT = b"ArrayChunk  9\0abc"
PARENT = encode_object("Array", ("0" * 64,), b"{}")
SMALL = encode_object("ArrayChunk", (), b"good")
LARGE = encode_object("ArrayChunk", (), b"good" * 100_000)  # kept in a file


@dataclass(frozen=True)
class Refused:
    """A call that ends with a status, its details containing a match of `text`."""

    status: StatusCode
    text: str


@dataclass(frozen=True)
class Case:
    """Something that no good peer sends.

    `expected` is the answer, a pattern in it, or how the call is refused. The SuperLink's log has a line whose message
    `logged` is found in, with the peer's address and the id `by`.
    """

    name: str
    send: Callable[[World], Awaitable[Any]]
    expected: Any
    logged: str
    by: str = "peer"


class Log:
    """The lines of a role's log that are written from now on."""

    def __init__(self, role: Peer) -> None:
        self._role = role
        self._skip = len(self._all())

    def _all(self) -> list[str]:
        return self._role.log().rpartition("\n")[0].splitlines()

    async def line(self, pattern: str, *ids: str) -> dict[str, Any]:
        """The first one whose message contains a match and that has these ids; it is no error of the role's own."""
        end = time.monotonic() + LOG_SECONDS
        while True:
            lines: list[dict[str, Any]] = [json.loads(line) for line in self._all()[self._skip :]]
            for line in lines:
                if re.search(pattern, line["message"]) and all(line.get(name) for name in ids):
                    assert "exception" not in line, line
                    return line
            assert time.monotonic() < end, f"no line has {pattern!r} and {ids}: {lines}"
            await asyncio.sleep(0.01)


@dataclass
class World:
    """A run between an executor and nodes: `node` owes a reply to `sent`, `done` has answered `answered`, `forger` has
    announced one with objects that are none."""

    folder: Path
    role: Role
    fab: bytes
    channels: dict[str, grpc.aio.Channel]
    executor: Executor
    hosted: Hosted
    node: StockNode
    sent: Letter
    done: StockNode
    answered: Letter
    forger: StockNode
    forged: Letter
    ended: int  # a run that was stopped
    http: str  # the address of the HTTP edge

    @property
    def control(self) -> Any:
        return ControlStub(self.channels["control"])

    @property
    def fleet(self) -> Any:
        return FleetStub(self.channels["fleet"])

    async def submit(self, content: bytes, hash_str: str = "") -> Any:
        """What a command line does to start a run."""
        return await self.control.StartRun(
            control_pb2.StartRunRequest(fab=run_pb2.Fab(content=content, hash_str=hash_str)), timeout=60
        )

    async def raw(self, surface: str, method: str, message: bytes, metadata: Any = None) -> Any:
        """Bytes as they are, as the one message of a call."""
        call = self.channels[surface].stream_unary(method, None, None)(iter([message]), metadata=metadata, timeout=60)
        return await call

    async def check(self, case: Case) -> None:
        """Send it: the answer is the one expected, the log says what and from whom, and nothing has changed."""
        log, before = Log(self.role), self.state()
        if isinstance(case.expected, Refused):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await case.send(self)
            assert refused.value.code() is case.expected.status, refused.value
            assert re.search(case.expected.text, refused.value.details() or ""), refused.value
        elif isinstance(case.expected, re.Pattern):
            answer = await case.send(self)
            assert case.expected.search(answer), answer
        else:
            answer = await case.send(self)
            assert answer == case.expected, answer
        await log.line(case.logged, "peer", case.by)
        found = changes(before, self.state())
        assert not found, "\n".join(found)

    def state(self) -> dict[str, list[Any]]:
        """Every row of every table, and every file of objects with its size."""
        found: dict[str, list[Any]] = {}
        path = self.folder / "superlink" / "superlink.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                if table == BEATS:
                    continue
                left_out = BY_THE_CLOCK.get(table, set())
                rows = [dict(row) for row in database.execute(f"SELECT * FROM {table}")]
                found[table] = sorted(repr({k: v for k, v in row.items() if k not in left_out}) for row in rows)
        objects = self.folder / "superlink" / "objects"
        found["files"] = sorted((str(path), path.stat().st_size) for path in objects.rglob("*") if path.is_file())
        return found

    async def settled(self) -> None:
        """Wait until the objects of what is over have been freed, which happens a little later."""
        end = time.monotonic() + LOG_SECONDS
        while any("'state': 1," in row for row in self.state()["messages"]):
            assert time.monotonic() < end, "the objects of answered messages are not freed"
            await asyncio.sleep(0.05)

    async def still(self) -> dict[str, list[Any]]:
        """The state once what earlier heartbeats said of nodes is in it: that is written in batches, one a second."""
        state, since = self.state(), time.monotonic()
        async with asyncio.timeout(LOG_SECONDS):
            while time.monotonic() - since < 1.5:
                await asyncio.sleep(0.05)
                if (now := self.state()) != state:
                    state, since = now, time.monotonic()
        return state

    async def good_run(self) -> None:
        """What was under way before all this is brought to its end, and another run goes through as ever."""
        await answer(self.node, self.sent)
        await finish(self.hosted, self.sent)
        self.executor.report(free_slots=1)
        submitted = await self.submit(self.fab)
        hosted = await self.executor.work()
        assert hosted.run_id == submitted.run_id
        await hosted.call("StartRunning", appio_pb2.StartRunningRequest())
        letter = hosted.instruction(self.node.node_id, records(200_000, number=2))
        missing = (await hosted.push(letter, inline=False)).missing_objects
        await hosted.send_objects({oid: letter.objects[oid] for oid in missing})
        metadata, _ = await self.node.take(await self.node.pull())
        assert metadata.message_id == letter.id
        await answer(self.node, letter)
        await finish(hosted, letter)
        for run_id in (self.hosted.run_id, hosted.run_id):
            listed = await self.control.ListRuns(control_pb2.ListRunsRequest(run_id=run_id))
            assert listed.run_dict[run_id].status.sub_status == "completed"


def changes(before: Mapping[str, list[Any]], after: Mapping[str, list[Any]]) -> list[str]:
    """The rows and files that are there after and not before, and the other way round."""
    return [
        f"{sign} {table}: {row}"
        for table in before
        for sign, one, other in (("-", before, after), ("+", after, before))
        for row in set(one[table]) - set(other[table])
    ]


async def answer(node: StockNode, letter: Letter) -> Letter:
    reply = node.reply(letter.metadata, records(150_000, b"r"))
    await node.send(reply)
    return reply


async def finish(hosted: Hosted, letter: Letter) -> None:
    """The run ends once it has the reply to its instruction."""
    got = await asyncio.wait_for(hosted.replies(letter.id).read(), 10)
    assert got.instruction_id == letter.id
    await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))


def forge(metadata: Metadata, leaves: Sequence[bytes]) -> Letter:
    """A message whose content has these bytes as its leaves; the ids are right, whatever the bytes are."""
    by_id = {object_id(leaf): leaf for leaf in leaves}
    body = json.dumps({oid[:8]: oid for oid in by_id}).encode()
    content = encode_object("RecordDict", tuple(by_id), body)
    root = encode_message_object(metadata, object_id(content), None)
    tree = Tree(object_id(root), (Tree(object_id(content), tuple(Tree(oid) for oid in by_id)),))
    objects = {**by_id, object_id(content): content, tree.object_id: root}
    return Letter(replace(metadata, message_id=tree.object_id), tree, objects)


async def delivered(hosted: Hosted, node: StockNode) -> Letter:
    """An instruction that the node has taken."""
    letter = hosted.instruction(node.node_id, records())
    assert list((await hosted.push(letter)).refusals) == [""]
    assert (await node.pull()).messages_list[0].metadata.message_id == letter.id
    return letter


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[World]:
    """The world, with its run under way."""
    at = Addresses.free(0)
    env = clean_environment(folder / "home", Path(sys.executable).parent)
    processes = Federation(Plan(folder, at, env=env))
    del processes.roles["serverapp"]  # the executor is made by hand
    processes.start()
    channels: dict[str, grpc.aio.Channel] = {}
    alive: asyncio.Task[None] | None = None
    try:
        await processes.ready()
        ports = {"fleet": at.fleet, "control": at.control, "appio": at.serverappio}
        channels.update({name: grpc.aio.insecure_channel(address, options=OPTIONS) for name, address in ports.items()})
        node, done, forger = (StockNode(FleetStub(channels["fleet"])) for _ in range(3))
        for one in (node, done, forger):
            await one.join()
        executor = Executor(ServerAppIOStub(channels["appio"]))
        await executor.attend()
        alive = asyncio.create_task(_stay(executor, node, done, forger))
        control, fab = ControlStub(channels["control"]), make_fab(folder / "app")
        start = control_pb2.StartRunRequest(fab=run_pb2.Fab(content=fab))
        await control.StartRun(start)
        hosted = await executor.work()
        executor.report(free_slots=0)
        await hosted.call("StartRunning", appio_pb2.StartRunningRequest())
        sent, answered, misused = [await delivered(hosted, one) for one in (node, done, forger)]
        await answer(done, answered)
        forged = forge(forger.reply(misused.metadata, {}).metadata, [HEADLESS, PICKLE, SHORT, PARENT, SMALL, LARGE])
        assert set(await forger.push(forged)) == set(forged.objects)
        ended = (await control.StartRun(start)).run_id
        await control.StopRun(control_pb2.StopRunRequest(run_id=ended))
        world = World(
            folder,
            processes["superlink"],
            fab,
            channels,
            executor,
            hosted,
            node,
            sent,
            done,
            answered,
            forger,
            forged,
            ended,
            at.http,
        )
        await world.settled()
        yield world
    finally:
        if alive is not None:
            alive.cancel()
        for channel in channels.values():
            await channel.close(None)
        print(processes.logs_for_people(200), file=sys.stderr)
        await processes.stop()


async def _stay(executor: Executor, *nodes: StockNode) -> None:
    """Signs of life, as the SuperLink wants them from an executor and from nodes."""
    while True:
        executor.report(alive=True)
        for node in nodes:
            await node.heartbeat()
        await asyncio.sleep(5)


@asynccontextmanager
async def site(folder: Path, fab: bytes, **plan: Any) -> AsyncIterator[tuple[Federation, Hosted, int]]:
    """A SuperNode with its ClientApp process, and a run of this app whose executor is made by hand."""
    at = Addresses.free(1)
    processes = Federation(Plan(folder, at, env=clean_environment(folder / "home"), **plan))
    del processes.roles["serverapp"]
    if "guest_python" not in plan:
        del processes.roles["clientapp-1"]  # there is nothing that it could host apps with
    processes.start()
    alive: asyncio.Task[None] | None = None
    try:
        await processes.ready()
        async with (
            grpc.aio.insecure_channel(at.serverappio, options=OPTIONS) as appio,
            grpc.aio.insecure_channel(at.control, options=OPTIONS) as control,
        ):
            executor = Executor(ServerAppIOStub(appio))
            await executor.attend()
            alive = asyncio.create_task(_stay(executor))
            await ControlStub(control).StartRun(control_pb2.StartRunRequest(fab=run_pb2.Fab(content=fab)))
            hosted = await executor.work()
            await hosted.call("StartRunning", appio_pb2.StartRunningRequest())
            async with asyncio.timeout(20):
                while not (nodes := (await hosted.call("GetNodes", appio_pb2.GetNodesRequest())).nodes):
                    await asyncio.sleep(0.05)
            yield processes, hosted, nodes[0].node_id
    finally:
        if alive is not None:
            alive.cancel()
        print(processes.logs_for_people(200), file=sys.stderr)
        await processes.stop()
