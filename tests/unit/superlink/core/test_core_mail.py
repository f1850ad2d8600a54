"""Instructions and replies: pushing, delivering, answering, confirming, and what the SuperLink answers itself."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from core_world import World, answer, ids, instruct, letter, records
from sqlalchemy import select
from trellis_superlink.core.errors import RunOver
from trellis_superlink.core.mail import Reply
from trellis_superlink.core.principals import NO_ACCOUNT, Principal
from trellis_superlink.store.signals import replies_topic
from trellis_superlink.store.tables import metrics
from trellis_wire.messages import MessageError, Metadata


async def replies(w: World, who: Principal, instruction_ids: list[str]) -> list[Reply]:
    async with asyncio.timeout(5):
        return [reply async for reply in w.core.mail.replies(who, instruction_ids)]


async def test_a_round(w: World) -> None:
    nodes = [await w.node(), await w.node()]
    who, work, _stay = await w.running()
    out = [instruct(work.run.run_id, node.node_id, records()) for node in nodes]
    waiting = [
        asyncio.create_task(w.core.mail.wait_for_instructions(node, timeout=5, inline=1 << 20)) for node in nodes
    ]
    await w.push(who, out)
    streaming = asyncio.create_task(replies(w, who, [each.id for each in out]))
    for node, sent, task in zip(nodes, out, waiting, strict=True):
        [got] = await task
        assert got.metadata == sent.meta
        assert got.tree == sent.parcel.tree
        assert got.objects == sent.contents
        reply = answer(sent.meta, records(fill=b"y", loss=0.5))
        pushed = await w.core.mail.push_reply(node, reply.full(), runtime=1.5)
        assert (pushed.refusals, pushed.missing) == ([""], [])
    got_replies = await streaming
    assert {reply.instruction_id for reply in got_replies} == {each.id for each in out}
    for each in got_replies:
        assert each.parcel.tree.object_id in each.parcel.objects
    await w.core.mail.confirm(who, [reply.parcel.tree.object_id for reply in got_replies])
    await w.rest()
    assert await w.stored() == (0, 0)
    assert (await w.details(work.run.run_id)).clientapp_runtime == 3.0
    kept = await w.core._ground.db.read(lambda conn: conn.execute(select(metrics)).all())
    assert sorted(row.node_id for row in kept) == sorted(node.node_id for node in nodes)
    assert [json.loads(row.record) for row in kept] == [{"loss": 0.5}, {"loss": 0.5}]


async def test_a_message_waits_for_its_objects(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    one, two = (instruct(work.run.run_id, node.node_id, records(), group=group) for group in "12")
    pushed = await w.core.mail.push_instructions(who, [one.bare(), two.bare()])
    assert set(pushed.missing) == set(one.contents) | set(two.contents)
    assert len(pushed.missing) == len(set(pushed.missing))
    contents = one.contents | two.contents
    held = asyncio.create_task(w.core.mail.wait_for_instructions(node, timeout=5, limit=2))
    for object_id in pushed.missing:
        assert await w.pull(Principal.node(4)) == []
        assert not held.done()
        assert await w.core.objects.store(who, work.run.run_id, object_id, contents[object_id])
    got = await held
    assert {parcel.metadata.message_id for parcel in got} <= {one.id, two.id}


async def test_pushing_again_asks_for_what_is_still_missing(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    first = await w.core.mail.push_instructions(who, [sent.bare()])
    await w.core.objects.store(who, work.run.run_id, first.missing[0], sent.contents[first.missing[0]])
    again = await w.core.mail.push_instructions(who, [sent.bare()])
    assert set(again.missing) == set(first.missing[1:])
    for object_id in again.missing:
        assert await w.core.objects.store(who, work.run.run_id, object_id, sent.contents[object_id])
    assert (await w.core.mail.push_instructions(who, [sent.bare()])).missing == []
    assert len(await w.pull(node)) == 1
    await w.core.mail.push_reply(node, answer(sent.meta, records()).full())
    assert (await w.core.mail.push_instructions(who, [sent.bare()])).missing == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dst_node_id": 77}, "node that this run does not have"),
        ({"dst_node_id": 1}, "another node"),
        ({"src_node_id": 9}, "SuperLink"),
        ({"run_id": 5}, "another run"),
        ({"ttl": -1.0}, "time to live"),
        ({"ttl": 0.5, "created_at": time.time() - 10}, "expired"),
        ({"message_type": ""}, "type"),
        ({"created_at": 1e9}, "2025"),
        ({"reply_to_message_id": "a" * 64}, "reply"),
    ],
)
async def test_instructions_that_break_a_rule_are_refused(w: World, change: dict[str, object], word: str) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    values: dict[str, object] = {
        "run_id": work.run.run_id,
        "message_id": "",
        "src_node_id": 1,
        "dst_node_id": node.node_id,
        "reply_to_message_id": "",
        "group_id": "",
        "ttl": 60.0,
        "message_type": "train",
        "created_at": time.time(),
    }
    bad = letter(Metadata(**(values | change)), records())  # type: ignore[arg-type]
    good = letter(Metadata(**values), records())  # type: ignore[arg-type]
    pushed = await w.core.mail.push_instructions(who, [bad.full(), good.full()])
    assert word in pushed.refusals[0]
    assert pushed.refusals[1] == ""
    assert [parcel.metadata.message_id for parcel in await w.pull(node)] == [good.id]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"reply_to_message_id": "b" * 64}, "does not exist"),
        ({"dst_node_id": 9}, "SuperLink"),
        ({"src_node_id": 9}, "another sender"),
        ({"ttl": 1e6}, "outlive"),
        ({"run_id": 9}, "another run"),
    ],
)
async def test_replies_that_break_a_rule_are_refused(w: World, change: dict[str, Any], word: str) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    before = await w.stored()
    pushed = await w.core.mail.push_reply(node, answer(sent.meta, records(fill=b"z"), **change).full())
    assert word in pushed.refusals[0]
    assert await w.stored() == before
    assert (await w.core.mail.push_reply(node, answer(sent.meta, records()).full())).refusals == [""]


async def test_the_first_reply_wins_and_the_same_again_is_taken(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    first, second = answer(sent.meta, records(fill=b"1")), answer(sent.meta, records(fill=b"2"))
    assert (await w.core.mail.push_reply(node, first.full())).refusals == [""]
    assert (await w.core.mail.push_reply(node, first.bare())).refusals == [""]
    assert "answered already" in (await w.core.mail.push_reply(node, second.full())).refusals[0]
    [reply] = await replies(w, who, [sent.id])
    assert reply.parcel.tree.object_id == first.id


async def test_a_reply_that_never_became_complete_gives_way(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    await w.pull(node)
    first, second = answer(sent.meta, records(fill=b"1")), answer(sent.meta, records(fill=b"2"))
    assert (await w.core.mail.push_reply(node, first.bare())).missing
    assert [parcel.metadata.message_id for parcel in await w.pull(node)] == [sent.id]
    assert (await w.core.mail.push_reply(node, second.full())).refusals == [""]
    [reply] = await replies(w, who, [sent.id])
    assert reply.parcel.tree.object_id == second.id
    await w.core.mail.confirm(who, [second.id])
    await w.rest()
    assert await w.stored() == (0, 0)


async def test_a_lost_instruction_comes_three_times_then_fails(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    for _ in range(3):
        assert [parcel.tree for parcel in await w.pull(node)] == [sent.parcel.tree]
        assert await w.pull(node, working_on=[sent.id]) == []
    assert await w.pull(node) == []
    [reply] = await replies(w, who, [sent.id])
    assert reply.parcel.error is not None
    assert reply.parcel.error.code == 8
    assert "answered already" in (await w.core.mail.push_reply(node, answer(sent.meta, records()).full())).refusals[0]


async def test_an_instruction_that_expires_is_answered_with_error_3(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records(), ttl=20)
    await w.push(who, [sent])
    streaming = asyncio.create_task(replies(w, who, [sent.id]))
    await asyncio.sleep(0)
    w.forward(21)
    [reply] = await streaming
    assert reply.parcel.error is not None
    assert reply.parcel.error.code == 3
    assert await w.pull(node) == []
    await w.core.mail.confirm(who, [reply.parcel.tree.object_id])
    await w.rest()
    assert await w.stored() == (0, 0)


async def test_a_reply_that_expires_before_it_is_asked_for_becomes_error_4(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records(), ttl=20)
    await w.push(who, [sent])
    await w.core.mail.push_reply(node, answer(sent.meta, records(100_000)).full())
    w.forward(21)
    [reply] = await replies(w, who, [sent.id])
    assert reply.parcel.error is not None
    assert reply.parcel.error.code == 4


async def test_what_was_never_there_is_error_3(w: World) -> None:
    who, _work, _stay = await w.running()
    [reply] = await replies(w, who, ["c" * 64])
    assert reply.parcel.error is not None
    assert reply.parcel.error.code == 3
    assert reply.parcel.metadata.reply_to_message_id == "c" * 64


async def test_a_node_that_falls_silent_costs_error_5(w: World) -> None:
    node = await w.node()
    who, work, stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    streaming = asyncio.create_task(replies(w, who, [sent.id]))
    for _ in range(4):
        await asyncio.sleep(0)
        stay.alive()
        w.forward(20)
    [reply] = await streaming
    assert reply.parcel.error is not None
    assert reply.parcel.error.code == 5
    # And one that is offline already, at once; nothing of the message needs to be sent.
    later = instruct(work.run.run_id, node.node_id, records(fill=b"q"))
    pushed = await w.core.mail.push_instructions(who, [later.bare()])
    assert (pushed.refusals, pushed.missing) == ([""], [])
    [reply] = await replies(w, who, [later.id])
    assert reply.parcel.error is not None
    assert reply.parcel.error.code == 5


async def test_error_replies_of_nodes_travel_like_others(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    error = MessageError(2, "ValueError: no data")
    await w.core.mail.push_reply(node, answer(sent.meta, None, error=error).full())
    [reply] = await replies(w, who, [sent.id])
    assert reply.parcel.error == error


async def test_a_newer_wait_ends_the_older(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    older = asyncio.create_task(w.core.mail.wait_for_instructions(node, timeout=30))
    while not w.core.mail.held:
        await asyncio.sleep(0)
    newer = asyncio.create_task(w.core.mail.wait_for_instructions(node, timeout=30))
    assert await older == []
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    assert [parcel.metadata.message_id for parcel in await newer] == [sent.id]
    assert w.core.mail.held == 0


async def test_the_end_of_a_run_frees_everything_and_tells_who_waits(w: World) -> None:
    nodes = [await w.node(), await w.node()]
    who, work, _stay = await w.running()
    out = [instruct(work.run.run_id, node.node_id, records(200_000)) for node in nodes]
    await w.core.mail.push_instructions(who, [each.bare() for each in out])
    contents = out[0].contents | out[1].contents
    for object_id in list(contents)[:4]:
        await w.core.objects.store(who, work.run.run_id, object_id, contents[object_id])
    streaming = asyncio.create_task(replies(w, who, [each.id for each in out]))
    async with asyncio.timeout(5):
        while replies_topic(work.run.run_id) not in w.core._ground.signals._listeners:
            await asyncio.sleep(0.005)
    await w.core.runs.stop(NO_ACCOUNT, work.run.run_id)
    with pytest.raises(RunOver):
        await streaming
    with pytest.raises(RunOver):
        await w.core.mail.push_reply(nodes[0], answer(out[0].meta, records()).full())
    with pytest.raises(RunOver):
        await w.core.mail.push_instructions(who, [out[0].full()])
    assert await w.core.runs.ended(nodes[0], [work.run.run_id, 99]) == [work.run.run_id, 99]
    await w.rest()
    assert await w.stored() == (0, 0)
    assert w.files() == []


async def test_one_model_for_many_nodes_is_stored_once(w: World) -> None:
    nodes = [await w.node() for _ in range(5)]
    who, work, _stay = await w.running()
    content = records(300_000)
    out = [instruct(work.run.run_id, node.node_id, content) for node in nodes]
    pushed = await w.core.mail.push_instructions(who, [each.bare() for each in out])
    shared = set.intersection(*(ids(each.parcel.tree) for each in out))
    assert len(pushed.missing) == len(shared) + len(nodes)
    everything = {k: v for each in out for k, v in each.contents.items()}
    for object_id in pushed.missing:
        assert await w.core.objects.store(who, work.run.run_id, object_id, everything[object_id])
    assert len(w.files()) == 1
    for node, sent in zip(nodes[:-1], out[:-1], strict=True):
        assert len(await w.pull(node)) == 1
        await w.core.mail.push_reply(node, answer(sent.meta, records()).full())
        await w.rest()
        assert len(w.files()) == 1
    [last] = await w.pull(nodes[-1])
    big = next(k for k, v in everything.items() if len(v) > 200_000)
    assert await w.core.objects.read(nodes[-1], work.run.run_id, big) == everything[big]
    await w.core.mail.push_reply(nodes[-1], answer(last.metadata, records()).full())
    await w.rest()
    assert w.files() == []
