"""What was acknowledged is on the disk: the SuperLink's system calls between a push's last byte and its answer."""

from __future__ import annotations

import array
import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from books import LEDGER, assert_kept
from edge_world import StockNode
from system_calls import Push, SystemCall, pushes, strace, system_calls
from trellis_testing import Layout, ProcessFederation
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub
from trellis_wire.records import ArrayRecord, MetricRecord, Record

NUMBERS = 256 * 1024  # 2 MiB, in one object
CHUNK = 5 * 1024 * 1024


@pytest.mark.timeout(120)
async def test_a_sync_lies_between_a_pushs_last_byte_and_its_answer(tmp_path: Path) -> None:
    output = tmp_path / "trace"
    federation = ProcessFederation(Layout((), under={"superlink": strace(output)}), tmp_path)
    async with federation:
        pushed = await one_round(federation)
    async with asyncio.timeout(10):
        while "+++ exited with" not in output.read_text(errors="replace").splitlines()[-1]:
            await asyncio.sleep(0.05)
    calls = system_calls(output)

    # A connection of the node carried its pushes and nothing else: PushMessages, then each object.
    (node,) = [one for one in of_port(calls, federation.addresses.fleet) if any(map(is_large, one))]
    assert len(node) == pushed
    (large,) = filter(is_large, node)
    for push in node:
        assert is_row_synced(calls, push), f"the database was not synced before push {node.index(push)} was answered"
    assert_file_synced(calls, large)

    # The executor's stream of objects brought the instruction's array.
    executor = [push for one in of_port(calls, federation.addresses.serverappio) for push in one]
    (large,) = filter(is_large, executor)
    assert is_row_synced(calls, large)
    assert_file_synced(calls, large)


async def one_round(federation: ProcessFederation) -> int:
    """A run of the ledger app whose one site is a node of ours made by hand; how many pushes it took."""
    channels = [
        grpc.aio.insecure_channel(federation.addresses.fleet, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(2)
    ]
    try:
        node, pushing = (StockNode(FleetStub(channel)) for channel in channels)
        await node.join()
        pushing = replace(node, stub=pushing.stub)
        run = await federation.run(LEDGER, {"rounds": 1, "sites": 1, "size": NUMBERS})
        instruction, content = await node.take(await node.pull())
        reply = pushing.reply(instruction, work(content), chunk=CHUNK)
        missing = await pushing.push(reply)
        for object_id in missing:
            assert await pushing.push_object(run.run_id, object_id, reply.objects[object_id])
        assert_kept(await asyncio.wait_for(run.finished(), 30), sites=1, rounds=1)
    finally:
        for channel in channels:
            await channel.close(None)
    return 1 + len(missing)


def work(content: dict[str, Record]) -> dict[str, Record]:
    """What the ledger's ClientApp answers as partition 0 in its first round: everything one more than it was."""
    model = content["model"]
    assert isinstance(model, ArrayRecord)
    ((name, zeros),) = model.items.items()
    size = 8 * NUMBERS
    ones = bytes(zeros.data[:-size]) + (array.array("d", [1.0]) * NUMBERS).tobytes()
    return {
        "model": ArrayRecord({name: replace(zeros, data=ones)}),
        "books": MetricRecord({"partition": 0, "worked": 1}),
    }


def is_large(push: Push) -> bool:
    return push.size > 8 * NUMBERS


def of_port(calls: list[SystemCall], address: str) -> list[list[Push]]:
    return pushes(calls, int(address.rpartition(":")[2]))


def synced(calls: list[SystemCall], push: Push) -> list[str]:
    """What was synced between the last byte and the answer, in order."""
    return [
        call.target
        for call in calls
        if call.name in ("fsync", "fdatasync") and push.received <= call.begun and call.ended <= push.answered
    ]


def is_row_synced(calls: list[SystemCall], push: Push) -> bool:
    return any(path.endswith("superlink.db-wal") for path in synced(calls, push))


def assert_file_synced(calls: list[SystemCall], push: Push) -> None:
    """The object's file and its folder, and the row that names it after both."""
    paths = synced(calls, push)
    files = [path for path in paths if Path(path).parent.parent.name == "objects"]
    assert len(files) == 1, f"the object's file was not synced: {paths}"
    assert str(Path(files[0]).parent) in paths, f"the folder of the object's file was not synced: {paths}"
    assert paths[-1].endswith("superlink.db-wal")
