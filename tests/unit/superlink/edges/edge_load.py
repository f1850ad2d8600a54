"""Models going down and up through a SuperLink process, and how far its memory rises meanwhile.

By hand, for example 1 GiB with three nodes of Flower 1.20-1.22:
`python tests/unit/superlink/edges/edge_load.py --size 1GiB --nodes 3 --old`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from edge_world import OPTIONS, Executor, Letter, StockNode, make_fab, model
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.appio.appio_pb2_grpc import ServerAppIOStub
from trellis_wire.pb.edge import control_pb2, run_pb2
from trellis_wire.pb.edge.control_pb2_grpc import ControlStub
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub

MIB = 1 << 20
WORKERS = 2  # transfers at once of a stock node on two cores


@dataclass
class Rise:
    """What a load cost: MiB of resident memory at its peak over idle, and seconds down and up."""

    peak: float
    after: float
    down: float
    up: float


class Process:
    """A SuperLink process and its memory."""

    def __init__(self, pid: int, addresses: dict[str, str]) -> None:
        self.pid = pid
        self.addresses = addresses

    def memory(self, field: str) -> float:
        """VmRSS (now) or VmHWM (peak since `reset`), in MiB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", text)
        assert found
        return int(found[1]) / 1024

    def reset(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@asynccontextmanager
async def superlink(folder: Path) -> AsyncIterator[Process]:
    ports = [f"--{name}-api-address=127.0.0.1:0" for name in ("serverappio", "fleet", "control")] + ["--port=0"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trellis_superlink.main", "--insecure", "--log-format", "json"),
        *(*ports, "--database", str(folder / "superlink.db")),
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")},
    )
    assert process.stderr is not None
    addresses: dict[str, str] = {}
    while "control" not in addresses:
        line = json.loads(await asyncio.wait_for(process.stderr.readline(), 30))
        if "listener" in line:
            addresses[line["listener"]] = line["address"]
    reading = asyncio.create_task(process.stderr.read())
    try:
        yield Process(process.pid, addresses)
    finally:
        process.terminate()
        await process.wait()
        await reading


async def in_turns(work: list[Any], workers: int) -> None:
    """Awaits the results of all calls, so many at a time."""
    queue = list(reversed(work))

    async def worker() -> None:
        while queue:
            await queue.pop()()

    await asyncio.gather(*(worker() for _ in range(workers)))


async def round_trip(
    net: Process, folder: Path, *, size: int, nodes: int, chunk: int, old: bool
) -> tuple[float, float]:
    """A model of `size` bytes to each node and another one back, as stock nodes do it; seconds down and up."""
    channels = {name: grpc.aio.insecure_channel(address, options=OPTIONS) for name, address in net.addresses.items()}
    control, appio = ControlStub(channels["control"]), ServerAppIOStub(channels["serverappio"])
    node_channels = [
        grpc.aio.insecure_channel(net.addresses["fleet"], options=[*OPTIONS, ("n", n)]) for n in range(nodes)
    ]
    peers = [StockNode(FleetStub(channel), old) for channel in node_channels]
    for peer in peers:
        await peer.join()
    executor = Executor(appio)
    await executor.attend()
    fab = run_pb2.Fab(content=make_fab(folder / "app"))
    await control.StartRun(control_pb2.StartRunRequest(fab=fab))
    hosted = await executor.work()
    await hosted.call("StartRunning", appio_pb2.StartRunningRequest())

    async def live() -> None:
        while True:
            executor.report(alive=True)
            await asyncio.sleep(5)

    living = asyncio.create_task(live())
    began = time.monotonic()
    down_model = model(await asyncio.to_thread(os.urandom, size))
    letters = [await asyncio.to_thread(hosted.instruction, peer.node_id, down_model, chunk=chunk) for peer in peers]
    everything = {oid: content for letter in letters for oid, content in letter.objects.items()}
    missing = (await hosted.push(*letters, inline=False)).missing_objects
    await hosted.send_objects({oid: everything[oid] for oid in missing})

    async def down(peer: StockNode) -> None:
        answer = await peer.pull()
        tree = Tree.from_edge(answer.message_object_trees[0])

        async def pull(object_id: str) -> None:
            assert (await peer.pull_object(hosted.run_id, object_id)).object_available

        await in_turns([lambda oid=oid: pull(oid) for oid in tree.post_order()], WORKERS)

    await asyncio.gather(*(down(peer) for peer in peers))
    middle = time.monotonic()

    async def up(peer: StockNode) -> Letter:
        own = next(letter for letter in letters if letter.metadata.dst_node_id == peer.node_id)
        own_model = model(await asyncio.to_thread(os.urandom, size))
        reply = await asyncio.to_thread(peer.reply, own.metadata, own_model, chunk=chunk)
        missing = await peer.push(reply)

        async def push(object_id: str) -> None:
            assert await peer.push_object(hosted.run_id, object_id, reply.objects[object_id])

        await in_turns([lambda oid=oid: push(oid) for oid in missing], WORKERS)
        return reply

    replies = await asyncio.gather(*(up(peer) for peer in peers))
    stream = hosted.replies(*(letter.id for letter in letters))
    for _ in replies:
        reply = await stream.read()
        inline = {one.object_id for one in reply.parcel.objects}
        wanted = [oid for oid in Tree.from_appio(reply.parcel.tree).post_order() if oid not in inline]
        async for _part in hosted.stub.PullObjects(
            appio_pb2.PullObjectsRequest(object_ids=wanted), metadata=hosted.metadata
        ):
            pass
    await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))
    ended = time.monotonic()
    living.cancel()
    executor.leave()
    for peer in peers:
        await peer.leave()
    for channel in [*channels.values(), *node_channels]:
        await channel.close(None)
    return middle - began, ended - middle


async def measure(folder: Path, *, size: int, nodes: int, old: bool, rounds: int = 1) -> Rise:
    """Idle is after a small round; the peak is that of all rounds."""
    chunk = (20 if old else 5) * MIB
    async with superlink(folder) as process:
        await round_trip(process, folder, size=1000, nodes=1, chunk=chunk, old=old)
        idle = process.memory("VmRSS")
        process.reset()
        down = up = 0.0
        for _ in range(rounds):
            down, up = await round_trip(process, folder, size=size, nodes=nodes, chunk=chunk, old=old)
        return Rise(process.memory("VmHWM") - idle, process.memory("VmRSS") - idle, down, up)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="100MiB")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--old", action="store_true")
    given = parser.parse_args()
    number, unit = re.fullmatch(r"(\d+)(MiB|GiB)", given.size).groups()  # type: ignore[union-attr]
    size = int(number) * (MIB if unit == "MiB" else 1024 * MIB)
    with tempfile.TemporaryDirectory() as folder:
        rise = asyncio.run(measure(Path(folder), size=size, nodes=given.nodes, old=given.old, rounds=given.rounds))
    print(f"peak over idle {rise.peak:.0f} MiB, after {rise.after:.0f} MiB, down {rise.down:.1f} s, up {rise.up:.1f} s")


if __name__ == "__main__":
    main()
