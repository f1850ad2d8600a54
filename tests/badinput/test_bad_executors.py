"""What no good ClientApp process sends to a SuperNode, over real connections."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import badinput_world
import grpc
import pytest
import pytest_asyncio
from badinput_world import Log, Refused, changes
from edge_world import Hosted, Letter, make_fab, records
from grpc import StatusCode
from node_world import Hand, model, reply_to, token
from trellis_kit.federation import Role
from trellis_wire.messages import Metadata
from trellis_wire.objects import encode_object, object_id
from trellis_wire.pb.appio import appio_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = encode_object("ArrayChunk", (), b"good" * 100_000)  # kept in a file
INVALID = StatusCode.INVALID_ARGUMENT


@dataclass
class Site:
    """A SuperNode whose ClientApp process is made by hand and has a task, and the ServerApp's side of it."""

    folder: Path
    role: Role
    hosted: Hosted
    sent: Letter
    hand: Hand
    work: appio_pb2.Work
    metadata: Metadata

    def state(self) -> dict[str, list[Any]]:
        """Every row of its ledger, and every file of objects with its size."""
        state = self.folder / "supernode-1" / "state"
        found: dict[str, list[Any]] = {}
        with TemporaryDirectory() as copy:  # the SuperNode lets nobody else open the file itself
            for path in state.glob("*.db*"):
                shutil.copy(path, Path(copy) / path.name)
            (path,) = Path(copy).glob("*.db")
            with closing(sqlite3.connect(path)) as database:
                for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    found[table] = sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
        found["files"] = [(str(one), one.stat().st_size) for one in state.rglob("*") if one.parent.name.isdigit()]
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    async with badinput_world.site(folder, make_fab(folder / "app")) as (processes, hosted, node_id):
        hand = Hand(processes.plan.addresses.clientappio[0])
        await hand.attend()
        alive = asyncio.create_task(stay(hand))
        try:
            sent = hosted.instruction(node_id, records())
            assert list((await hosted.push(sent)).refusals) == [""]
            work = await hand.work()
            metadata, _ = await hand.read(work)
            yield Site(folder, processes["supernode-1"], hosted, sent, hand, work, metadata)
            assert await hand.finish(work, model(b"y" * 200_000))  # a good reply, as ever
            assert (await hosted.replies(sent.id).read()).instruction_id == sent.id
        finally:
            alive.cancel()
            await hand.close()


async def stay(hand: Hand) -> None:
    """Sign of life, as the SuperNode wants it from an executor."""
    while True:
        await asyncio.sleep(5)
        await hand.report(alive=True)


@dataclass(frozen=True)
class Case:
    """Something that no good executor sends, how it is refused, and what the SuperNode's log says."""

    name: str
    send: Callable[[Site], Awaitable[Any]]
    refused: Refused
    logged: str


def part(site: Site, content: bytes, **changed: Any) -> Awaitable[Any]:
    values = {"object_id": object_id(content), "offset": 0, "size": len(content), "data": content, **changed}
    parts = [appio_pb2.ObjectPart(**values)]
    call: Awaitable[Any] = site.hand.stub.PushObjects(iter(parts), metadata=token(site.work))
    return call


def finish(site: Site, alter: Callable[[appio_pb2.FinishTaskRequest], object]) -> Awaitable[Any]:
    request, _ = reply_to(site.metadata, model(b"x"), None)
    alter(request)
    call: Awaitable[Any] = site.hand.stub.FinishTask(request, metadata=token(site.work))
    return call


def to_another(request: appio_pb2.FinishTaskRequest) -> None:
    made = reply_to(Metadata(1, "f" * 64, 1, 2, "", "", 60.0, "train", time.time()), model(b"x"), None)[0]
    request.CopyFrom(made)


def raw(site: Site, method: str, data: bytes) -> Awaitable[Any]:
    path = f"/trellis.appio.v1.ClientAppIO/{method}"
    call: Awaitable[Any] = site.hand.channel.stream_unary(path, None, None)(iter([data]), metadata=token(site.work))
    return call


def stranger(site: Site) -> Awaitable[Any]:
    request = appio_pb2.GetFabRequest(fab_hash=site.work.run.fab_hash)
    call: Awaitable[Any] = site.hand.stub.GetFab(request, metadata=(("trellis-token", "guess"),))
    return call


OBJECT, REPLY = "^An object was refused", "^A reply was refused"
CASES = [
    Case("altered", lambda s: part(s, LARGE, data=LARGE[:-1] + b"!"), Refused(INVALID, "hash"), OBJECT),
    Case("a gap", lambda s: part(s, LARGE, offset=1), Refused(INVALID, "follow"), OBJECT),
    Case("more than it says", lambda s: part(s, LARGE, size=99), Refused(INVALID, ""), OBJECT),
    Case("an id that is a path", lambda s: part(s, LARGE, object_id="../../evil"), Refused(INVALID, ""), OBJECT),
    Case("headless", lambda s: part(s, b"no head"), Refused(INVALID, "head"), OBJECT),
    Case("no reply", lambda s: finish(s, lambda r: r.Clear()), Refused(INVALID, ""), REPLY),
    Case(
        "without its root",
        lambda s: finish(s, lambda r: r.reply.ClearField("objects")),
        Refused(INVALID, "root"),
        REPLY,
    ),
    Case(
        "no tree", lambda s: finish(s, lambda r: r.reply.tree.ClearField("children")), Refused(INVALID, "tree"), REPLY
    ),
    Case("to another task", lambda s: finish(s, to_another), Refused(INVALID, "not one to this"), REPLY),
    Case("no protobuf", lambda s: raw(s, "FinishTask", b"\xff"), Refused(INVALID, "malformed"), "no FinishTaskRequest"),
    Case("a part that is none", lambda s: raw(s, "PushObjects", b"\x0a\x05ab"), Refused(INVALID, "malformed"), OBJECT),
    Case(
        "an oversized one",
        lambda s: raw(s, "PushObjects", bytes(34 << 20)),
        Refused(StatusCode.RESOURCE_EXHAUSTED, ""),
        OBJECT + ".*too large",
    ),
    Case(
        "a token", stranger, Refused(StatusCode.PERMISSION_DENIED, "no task with this token"), "no task with this token"
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_a_supernode_refuses(site: Site, case: Case) -> None:
    log, before = Log(site.role), site.state()
    with pytest.raises(grpc.aio.AioRpcError, match=case.refused.text or None) as refused:
        await case.send(site)
    assert refused.value.code() is case.refused.status, refused.value
    await log.line(case.logged, "peer")
    assert changes(before, site.state()) == []


async def test_a_log_line_of_10_mb_is_cut(site: Site) -> None:
    log, before = Log(site.role), site.state()
    line = appio_pb2.LogLine(timestamp=time.time(), level="OUT", text="y" * 10_000_000 + "\n")
    await site.hand.stub.PushLogs(appio_pb2.PushLogsRequest(lines=[line], sequence=1), metadata=token(site.work))
    told = await log.line("10000000 characters, cut", "run_id", "node_id", "message_id")
    assert len(told["message"]) < 40_000
    assert changes(before, site.state()) == []
