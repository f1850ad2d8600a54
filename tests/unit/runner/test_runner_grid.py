"""The ServerApp's Grid, from the app's side; this side answers as an executor does."""

from __future__ import annotations

import asyncio
import textwrap
import time
from dataclasses import asdict

import pytest
from trellis_runner.frames import Header
from trellis_runner.zygote import Guest
from unit.runner.runner_world import World, instruction

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the host stays from test to test


PUSH = """
def make(node):
    content = RecordDict({"config": ConfigRecord({"node": node})})
    return grid.create_message(content, "train", node, "g1", 60.0)
"""


async def _call(guest: Guest) -> Header:
    header, _ = await asyncio.wait_for(guest.frames.receive(), 10)
    return header


async def _started(world: World, body: str) -> Guest:
    guest = await world.start("server", PUSH + textwrap.dedent(body))
    await guest.frames.send({"id": (await _call(guest))["id"]})
    return guest


async def _ended(world: World, guest: Guest) -> None:
    end = await _call(guest)
    await world.host.release(guest)
    assert end["op"] == "completed", (end, world.log)


def _reply(instruction_id: str) -> Header:
    reply = instruction(message_id="b" * 64, src_node_id=7, dst_node_id=1, reply_to_message_id=instruction_id)
    return {"metadata": asdict(reply), "error": [2, "no"]}


async def test_pushed_messages_carry_what_a_superlink_wants(world: World) -> None:
    guest = await _started(
        world,
        """
        sent = [make(7), make(8), make(9)]
        ids = list(grid.push_messages(sent))
        assert ids == ["id7", "", "id9"], ids
        assert [message.metadata.message_id for message in sent] == ids
        assert grid.run.run_id == 5 and grid.run.fab_hash == "f" * 64
        """,
    )
    header = await _call(guest)
    for node, described in zip((7, 8, 9), header["messages"], strict=True):
        metadata = described["metadata"]
        assert (metadata["run_id"], metadata["src_node_id"], metadata["dst_node_id"]) == (5, 1, node)
        assert (metadata["message_type"], metadata["group_id"], metadata["ttl"]) == ("train", "g1", 60.0)
    await guest.frames.send({"id": header["id"], "message_ids": ["id7", "", "id9"]})
    await _ended(world, guest)


async def test_replies_come_as_they_arrive_and_a_timeout_returns_those(world: World) -> None:
    guest = await _started(
        world,
        """
        began = time.monotonic()
        replies = list(grid.send_and_receive([make(7), make(8)], timeout=0.6))
        took = time.monotonic() - began
        assert 0.5 < took < 2.0, took
        assert [reply.metadata.reply_to_message_id for reply in replies] == ["id7"], replies
        assert replies[0].has_error() and replies[0].error.code == 2
        assert list(grid.send_and_receive([])) == []
        """,
    )
    push = await _call(guest)
    await guest.frames.send({"id": push["id"], "message_ids": ["id7", "id8"]})
    wanted = await _call(guest)
    assert (wanted["op"], wanted["ids"], wanted["now"]) == ("replies", ["id7", "id8"], False)
    await guest.frames.send({"id": wanted["id"], "message": _reply("id7")})
    assert await _call(guest) == {"op": "forget", "id": wanted["id"], "buffers": []}
    await guest.frames.send({"id": wanted["id"], "message": _reply("id8")})  # too late: heard by nobody
    empty = await _call(guest)
    await guest.frames.send({"id": empty["id"], "message_ids": []})
    await _ended(world, guest)


async def test_pulling_does_not_wait(world: World) -> None:
    guest = await _started(
        world,
        """
        assert list(grid.pull_messages([])) == []
        found = list(grid.pull_messages(["id7", "id8"]))
        assert [reply.metadata.reply_to_message_id for reply in found] == ["id8"]
        """,
    )
    wanted = await _call(guest)
    assert (wanted["ids"], wanted["now"]) == (["id7", "id8"], True)
    await guest.frames.send({"id": wanted["id"], "message": _reply("id8")})
    await guest.frames.send({"id": wanted["id"], "done": True})
    await _ended(world, guest)


async def test_a_refusal_is_an_exception_where_it_was_asked(world: World) -> None:
    guest = await _started(
        world,
        """
        try:
            grid.get_node_ids()
        except RuntimeError as error:
            assert str(error) == "The SuperLink refused: no", error
        assert grid.get_node_ids() == [7]
        """,
    )
    await guest.frames.send({"id": (await _call(guest))["id"], "failed": "The SuperLink refused: no"})
    await guest.frames.send({"id": (await _call(guest))["id"], "nodes": [{"node_id": 7}]})
    await _ended(world, guest)


async def test_many_threads_call_at_once(world: World) -> None:
    guest = await _started(
        world,
        """
        wrong = []
        def work(node):
            for _ in range(5):
                [reply] = grid.send_and_receive([make(node)], timeout=20)
                if reply.metadata.reply_to_message_id != "id%d" % node:
                    wrong.append(node)
                grid.get_node_ids()
        threads = [threading.Thread(target=work, args=(node,)) for node in range(100, 132)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not wrong, wrong
        """,
    )
    since = time.monotonic()
    waiting: list[Header] = []

    async def answer_out_of_order() -> None:
        for wanted in waiting:
            await guest.frames.send({"id": wanted["id"], "message": _reply(wanted["ids"][0])})
            await guest.frames.send({"id": wanted["id"], "done": True})
        waiting.clear()

    async def following() -> Header:
        """The next call; the last few threads are not left waiting for others to come."""
        call = asyncio.create_task(_call(guest))
        while not (await asyncio.wait({call}, timeout=0.1))[0]:
            await answer_out_of_order()
        return call.result()

    while (header := await following())["op"] not in ("completed", "failed"):
        match header["op"]:
            case "push":
                ids = [f"id{described['metadata']['dst_node_id']}" for described in header["messages"]]
                await guest.frames.send({"id": header["id"], "message_ids": ids})
            case "nodes":
                await guest.frames.send({"id": header["id"], "nodes": []})
            case _:
                waiting.insert(0, header)
        if len(waiting) > 3:
            await answer_out_of_order()
    await world.host.release(guest)
    assert header["op"] == "completed", (header, world.log)
    assert time.monotonic() - since < 10


async def test_an_executor_that_is_gone_is_told(world: World) -> None:
    guest = await _started(
        world,
        """
        try:
            grid.get_node_ids()
        except ConnectionError as error:
            print("gone:", error)
        """,
    )
    await _call(guest)
    await world.host.release(guest, patience=5.0)
    assert "gone: The executor that hosts this app is gone." in world.log
