"""Apps made on the spot, hosted by real interpreters with real releases of flwr, without a network."""

from __future__ import annotations

import asyncio
import os
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trellis_runner.frames import GuestGone, Header
from trellis_runner.host import GuestHost, GuestSettings, guest_work
from trellis_runner.records import FrameRecords, Packer, read_metadata, read_records
from trellis_runner.zygote import Guest, Kind, describe_end
from trellis_testing.venvs import StockFlwr
from trellis_wire import fab
from trellis_wire.messages import Metadata
from trellis_wire.objects import Buffer
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.records import Record, inflate_message

RUN_ID, NODE_ID = 5, 7

# In words that every release from 1.20 on knows.
CLIENT = """
import os, sys, time
from flwr.client import ClientApp
from flwr.common import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

app = ClientApp()

def answer(message, **config):
    return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)

@app.train()
def train(message, context):
"""
SERVER = """
import os, sys, threading, time
from flwr.common import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.server import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
"""


def interpreter(version: str) -> Path:
    """The interpreter of an environment with this release of flwr."""
    return StockFlwr(version).ensure().python


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that only its parent keeps has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@dataclass
class Outcome:
    """What came of one message: a reply, an error, or the end of the process."""

    code: int = 0
    reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[str, Record] = field(default_factory=dict)
    state: Mapping[str, Record] = field(default_factory=dict)
    modules: Sequence[str] = ()
    crashed: str = ""


@dataclass
class World:
    """One host and what its guests print."""

    host: GuestHost
    folder: Path
    lines: list[appio_pb2.LogLine] = field(default_factory=list)
    _apps: int = 0

    @property
    def log(self) -> str:
        return "".join(line.text for line in self.lines)

    def sink(self, lines: Sequence[appio_pb2.LogLine]) -> None:
        self.lines.extend(lines)

    def app(self, head: str, body: str, **files: str) -> Path:
        """A folder with `main_app.py`, and further files by module name."""
        self._apps += 1
        folder = self.folder / f"apps/{self._apps}"
        folder.mkdir(parents=True)
        indented = textwrap.indent(textwrap.dedent(body), "    ")
        (folder / "main_app.py").write_text(head + indented)
        for name, content in files.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(content))
        return folder

    def work(self, app: Path, frame: FrameRecords, state: Mapping[str, Record], **more: Any) -> Header:
        work_dir = self.folder / "work"
        work_dir.mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "run_id": RUN_ID,
            "node_id": NODE_ID,
            "node_config": {"partition-id": 0, "num-partitions": 2},
            "run_config": {"rounds": 3},
            "series_id": 0,
            "app_dir": str(app),
            "work_dir": str(work_dir),
            "reference": "main_app:app",
            "state": frame.describe(state),
        }
        return guest_work(**{**values, **more})

    async def send(
        self,
        guest: Guest,
        app: Path,
        records: Mapping[str, Record] | None = None,
        state: Mapping[str, Record] | None = None,
        metadata: Metadata | None = None,
        **more: Any,
    ) -> None:
        """Give a client guest a message."""
        frame = FrameRecords()
        message = frame.describe_message(metadata or instruction(), None, records or {})
        await guest.frames.send(self.work(app, frame, state or {}, message=message, **more), frame.buffers)

    async def outcome(self, guest: Guest, **release: float) -> Outcome:
        """What the guest makes of its message; the guest is released."""
        try:
            header, buffers = await guest.frames.receive()
        except GuestGone:
            return Outcome(crashed=describe_end(await self.host.release(guest, **release)))
        await self.host.release(guest, **release)
        return read_outcome(header, buffers)

    async def client(self, body: str, *, files: Mapping[str, str] | None = None, **more: Any) -> Outcome:
        """A message to a ClientApp whose `train` has this body."""
        return await self.message(self.app(CLIENT, body, **(files or {})), **more)

    async def message(self, app: Path, **more: Any) -> Outcome:
        """A message to the ClientApp in a folder, in a fresh guest."""
        guest = await self.host.fork("client", self.sink)
        await self.send(guest, app, **more)
        return await self.outcome(guest)

    async def start(self, kind: Kind, body: str, **more: Any) -> Guest:
        """A guest that works."""
        app = self.app(CLIENT if kind == "client" else SERVER, body)
        guest = await self.host.fork(kind, self.sink)
        if kind == "client":
            await self.send(guest, app, **more)
        else:
            frame = FrameRecords()
            await guest.frames.send(self.server_work(app, frame, **more), frame.buffers)
        return guest

    def server_work(self, app: Path, frame: FrameRecords, **more: Any) -> Header:
        of_run = {"fab_id": "test/app", "fab_version": "1.0.0", "fab_hash": "f" * 64, "override_config": {}}
        return self.work(app, frame, {}, **{**of_run, "node_id": 1, **more})


def read_outcome(header: Header, buffers: Sequence[Buffer]) -> Outcome:
    if header["op"] == "error":
        return Outcome(code=header["code"], reason=header["reason"])
    records = read_records(header["message"]["records"], buffers)
    config = getattr(records.get("config"), "items", {})
    state = read_records(header["state"], buffers)
    return Outcome(config=config, records=records, state=state, modules=header["modules"])


def instruction(**changes: Any) -> Metadata:
    """Metadata as a SuperLink sends it."""
    metadata = Metadata(
        run_id=RUN_ID,
        message_id="a" * 64,
        src_node_id=1,
        dst_node_id=NODE_ID,
        reply_to_message_id="",
        group_id="1",
        ttl=3600.0,
        message_type="train",
        created_at=time.time(),
        src_task_id=None,
        dst_task_id=None,
    )
    return replace(metadata, **changes)


def settings(python: Path, folder: Path, **more: Any) -> GuestSettings:
    """Settings of a host below `folder`."""
    root = folder / "root"
    for each in (
        root,
        folder / "apps",
        folder / "work",
    ):  # what comes after the host cannot be seen beside what it hides
        each.mkdir(exist_ok=True)
    return GuestSettings(python, root, **more)


class Federation:
    """Both sides of an app in guests: answers what the ServerApp asks, with a client guest for each message."""

    def __init__(self, world: World, app: Path, nodes: int = 2) -> None:
        self.world = world
        self.app = app
        self.nodes = nodes
        self._sent: dict[str, Metadata] = {}
        self._contents: dict[str, Any] = {}

    async def run(self, **override: Any) -> Header:
        """The ServerApp's last word."""
        target = self.world.folder / "unpacked"
        target.mkdir()
        info = fab.unpack(fab.build(self.app), target)
        self._config = {**info.config, **override}
        self._target, self._reference = target, info.clientapp
        guest = await self.world.host.fork("server", self.world.sink)
        frame = FrameRecords()
        work = self.world.server_work(target, frame, reference=info.serverapp, run_config=self._config)
        await guest.frames.send(work, frame.buffers)
        answers: set[asyncio.Task[None]] = set()
        while True:
            header, buffers = await guest.frames.receive()
            if header["op"] in ("completed", "failed"):
                await asyncio.gather(*answers)
                await self.world.host.release(guest)
                return header
            answers.add(asyncio.create_task(self._answer(guest, header, buffers)))

    async def _answer(self, guest: Guest, header: Header, buffers: Sequence[Buffer]) -> None:
        number = header["id"]
        match header["op"]:
            case "running":
                await guest.frames.send({"id": number})
            case "nodes":
                nodes = [{"node_id": 100 + index} for index in range(self.nodes)]
                await guest.frames.send({"id": number, "nodes": nodes})
            case "push":
                packer = Packer(buffers)
                ids = []
                for described in header["messages"]:
                    metadata, tree = packer.pack(described)
                    objects = packer.objects
                    self._contents[metadata.message_id] = inflate_message(tree, lambda oid, o=objects: o[oid].content())  # type: ignore[misc]
                    self._sent[metadata.message_id] = metadata
                    ids.append(metadata.message_id)
                await guest.frames.send({"id": number, "message_ids": ids})
            case "replies":
                await asyncio.gather(*(self._reply(guest, number, message_id) for message_id in header["ids"]))
                await guest.frames.send({"id": number, "done": True})

    async def _reply(self, guest: Guest, number: int, message_id: str) -> None:
        metadata, _, records = self._contents[message_id]
        client = await self.world.host.fork("client", self.world.sink)
        partition = {"partition-id": metadata.dst_node_id - 100, "num-partitions": self.nodes}
        await self.world.send(
            client,
            self._target,
            records,
            metadata=metadata,
            node_id=metadata.dst_node_id,
            node_config=partition,
            run_config=self._config,
            reference=self._reference,
        )
        header, buffers = await client.frames.receive()
        self.world.host.preimport(header.get("modules", ()))
        await self.world.host.release(client)
        assert header["op"] == "reply", header
        frame = FrameRecords()
        reply = replace(read_metadata(header["message"]["metadata"]), message_id=f"{message_id[:60]}r")
        message = frame.describe_message(reply, None, read_records(header["message"]["records"], buffers))
        await guest.frames.send({"id": number, "message": message}, frame.buffers)


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def texts(lines: Iterable[appio_pb2.LogLine], level: str) -> str:
    """All text of one level."""
    return "".join(line.text for line in lines if line.level == level)
