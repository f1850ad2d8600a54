"""Arrays of pickled Python objects: whoever read them would run their sender's code. Neither side's app gets them."""

from __future__ import annotations

import array
import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from badinput_world import Log, site
from books import LEDGER, books
from edge_world import OPTIONS, Hosted, StockNode
from trellis_testing import Layout, ProcessFederation, StockFlwr
from trellis_wire import fab
from trellis_wire.messages import ErrorCode, MessageError
from trellis_wire.objects import Tree
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub
from trellis_wire.records import Array, ArrayRecord, MetricRecord, Record, inflate_message


@dataclass(frozen=True)
class Trap:
    """Creates a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


def npy(descr: str, shape: tuple[int, ...], data: bytes) -> bytes:
    head = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


def pickled(path: Path) -> dict[str, Record]:
    """A model with a trap; what the ledger app reads first."""
    data = npy("|O", (1,), pickle.dumps([Trap(path)]))
    return {"model": ArrayRecord({"0": Array("object", (1,), data)})}


def numbers(*values: float) -> dict[str, Record]:
    data = npy("<f8", (len(values),), array.array("d", values).tobytes())
    return {"model": ArrayRecord({"0": Array("float64", (len(values),), data)})}


async def test_the_trap_snaps(tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "snapped"))).close()
    assert (tmp_path / "snapped").exists()


@pytest.mark.timeout(90)
async def test_an_instruction_with_one_is_answered_with_an_error(tmp_path: Path) -> None:
    python = StockFlwr("1.41.0").ensure().python
    async with site(tmp_path, fab.build(LEDGER), guest_python=python) as (processes, hosted, node_id):
        log = Log(processes["clientapp-1"])
        read = await exchange(hosted, node_id, pickled(tmp_path / "snapped"))
        assert isinstance(read, MessageError)
        assert read.code == ErrorCode.UNKNOWN
        assert "pickled" in read.reason
        await log.line("pickled", "run_id", "node_id", "message_id")
        good = await exchange(hosted, node_id, numbers(1.0, 2.0))
        assert isinstance(good, dict)
        assert good["books"] == MetricRecord({"partition": 0, "worked": 1})
    assert not (tmp_path / "snapped").exists()


@pytest.mark.timeout(90)
async def test_a_reply_with_one_is_an_error_to_the_app(tmp_path: Path) -> None:
    federation = ProcessFederation(Layout(()), tmp_path)
    channel = grpc.aio.insecure_channel(federation.addresses.fleet, options=OPTIONS)
    async with federation, channel:
        log = Log(federation["serverapp"])
        node = StockNode(FleetStub(channel))
        await node.join()
        run = await federation.run(LEDGER, {"rounds": 2, "sites": 1, "size": 2})
        good = {**numbers(1.0, 1.0), "books": MetricRecord({"partition": 0, "worked": 1})}
        for content in (pickled(tmp_path / "snapped"), good):
            instruction, _ = await node.take(await node.pull())
            await node.send(node.reply(instruction, content))
        result = await asyncio.wait_for(run.finished(), 30)
    assert result.outcome == "completed", result
    first, second = books(result.log)
    assert first.replies == [(-1, 0, ErrorCode.UNKNOWN)]
    assert second.replies == [(0, 1, None)]
    line = await log.line("pickled", "run_id", "message_id")
    assert str(node.node_id) in line["message"]
    assert not (tmp_path / "snapped").exists()


async def exchange(hosted: Hosted, node_id: int, content: dict[str, Record]) -> MessageError | dict[str, Record] | None:
    """One instruction and what its reply says."""
    letter = hosted.instruction(node_id, content)
    assert list((await hosted.push(letter)).refusals) == [""]
    reply = await asyncio.wait_for(hosted.replies(letter.id).read(), 20)
    objects = {one.object_id: one.content for one in reply.parcel.objects}
    _, error, records = inflate_message(Tree.from_appio(reply.parcel.tree), objects.__getitem__)
    return error or records
