"""Taking objects in and handing them out: verification, visibility, durability, ranges, reference counts."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from core_world import World, answer, instruct, records
from trellis_superlink.core.errors import BadObject, NotFound, RunOver, TryAgainLater
from trellis_superlink.core.objects import PART
from trellis_superlink.core.parcels import INLINE_ANSWER, Parcel
from trellis_superlink.core.principals import NO_ACCOUNT, SYSTEM, Principal
from trellis_superlink.store.files import Incoming
from trellis_wire.objects import Tree, encode_object, object_id


async def test_a_large_object_travels_in_parts(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    run_id = work.run.run_id
    sent = instruct(run_id, node.node_id, records(3 * PART + 17))
    pushed = await w.core.mail.push_instructions(who, [sent.bare()])
    receiver = w.core.objects.receive(who, run_id)
    for object_id_ in pushed.missing:
        content = sent.contents[object_id_]
        for offset in range(0, len(content), 400_000):
            await receiver.part(object_id_, offset, len(content), content[offset : offset + 400_000])
    assert set(await receiver.finish()) == set(pushed.missing)
    await receiver.abort()
    assert len(await w.pull(node)) == 1
    got: dict[str, bytearray] = {}
    async for part in w.core.objects.stream(node, run_id, list(sent.contents)):
        assert len(part.data) <= PART
        assert part.offset == len(got.setdefault(part.object_id, bytearray()))
        got[part.object_id] += part.data
    assert got == sent.contents
    for object_id_, content in sent.contents.items():
        assert await w.core.objects.read(node, run_id, object_id_) == content
    await w.core._ledger.flush()
    assert (await w.details(run_id)).bytes_sent == 2 * sum(map(len, sent.contents.values()))


async def test_what_travels_with_messages_is_traffic_too(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    run_id = work.run.run_id
    sent = instruct(run_id, node.node_id, records(200))
    await w.core.mail.push_instructions(who, [sent.full()])
    (got,) = await w.pull(node, inline=INLINE_ANSWER)
    reply = answer(got.metadata, records(300))
    await w.core.mail.push_reply(node, reply.full())
    again = answer(got.metadata, records(400))
    assert any((await w.core.mail.push_reply(node, again.full())).refusals)
    await w.core._ledger.flush()
    run = await w.details(run_id)
    assert run.bytes_sent == sum(map(len, sent.contents.values()))
    assert run.bytes_received == sum(map(len, reply.contents.values()))


async def test_stored_objects_are_on_the_disk_before_the_answer(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records(200_000))
    await w.core.mail.push_instructions(who, [sent.bare()])
    events: list[str] = []
    settle, run = Incoming.settle, w.core._ground.db._run

    def noting_settle(self: Incoming) -> None:
        settle(self)
        events.append("synced")

    def noting_run(connection: Any, group: Any) -> None:
        run(connection, group)
        events.append("committed")

    monkeypatch.setattr(Incoming, "settle", noting_settle)
    monkeypatch.setattr(w.core._ground.db, "_run", noting_run)
    big = next(k for k, v in sent.contents.items() if len(v) > 100_000)
    assert await w.core.objects.store(who, work.run.run_id, big, sent.contents[big])
    assert events == ["synced", "committed"]


async def test_wrong_objects_are_not_stored(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    run_id = work.run.run_id
    body = b"z" * 100
    chunk = encode_object("ArrayChunk", (), body)
    malformed = b"Array  5\0xx"
    lying = encode_object("Array", (object_id(chunk),), b"{}")
    tree = Tree("0" * 64, (Tree(object_id(malformed)), Tree(object_id(lying)), Tree(object_id(chunk))))
    sent = instruct(run_id, node.node_id, records())
    # A message whose content is made of these; its own object fits nothing, but nothing is checked before it comes.
    forged = Parcel(type(sent.meta)(**(sent.meta.__dict__ | {"message_id": "1" * 64})), Tree("1" * 64, (tree,)))
    pushed = await w.core.mail.push_instructions(who, [forged])
    assert pushed.refusals == [""]
    assert not await w.core.objects.store(who, run_id, object_id(chunk), chunk + b"!")
    assert not await w.core.objects.store(who, run_id, "9" * 64, chunk)
    with pytest.raises(BadObject):
        await w.core.objects.store(who, run_id, object_id(malformed), malformed)
    with pytest.raises(BadObject):  # its head names a child that the tree does not
        await w.core.objects.store(who, run_id, object_id(lying), lying)
    receiver = w.core.objects.receive(who, run_id)
    with pytest.raises(BadObject):
        await receiver.part("0" * 64, 5, 10, b"12345")
    await receiver.abort()
    receiver = w.core.objects.receive(who, run_id)
    await receiver.part(object_id(chunk), 0, len(chunk), chunk.replace(b"z", b"y"))
    with pytest.raises(BadObject):
        await receiver.finish()
    await receiver.abort()
    receiver = w.core.objects.receive(who, run_id)
    with pytest.raises(BadObject):
        await receiver.part(object_id(chunk), 0, len(chunk), b"!" * len(chunk))
    await receiver.abort()
    receiver = w.core.objects.receive(who, run_id)
    await receiver.part(object_id(chunk), 0, len(chunk), chunk[:10])
    with pytest.raises(BadObject):
        await receiver.finish()
    await receiver.abort()
    assert w.files() == []
    assert await w.core.objects.store(who, run_id, object_id(chunk), chunk)
    assert await w.pull(node) == []


async def test_a_tree_cannot_give_a_known_object_other_children(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records())
    await w.push(who, [sent])
    before = await w.stored()
    content = sent.parcel.tree.children[0]
    forged = Tree("1" * 64, (Tree(content.object_id, content.children[:1]),))
    meta = type(sent.meta)(**(sent.meta.__dict__ | {"message_id": "1" * 64}))
    with pytest.raises(BadObject):
        await w.core.mail.push_instructions(who, [Parcel(meta, forged)])
    assert await w.stored() == before


async def test_nobody_reads_what_is_in_no_message_of_his(w: World) -> None:
    node, other = await w.node(), await w.node()
    who, work, _stay = await w.running()
    run_id = work.run.run_id
    sent = instruct(run_id, node.node_id, records(200_000))
    await w.push(who, [sent])
    some = next(iter(sent.contents))
    for nosy in (other, node):  # the node itself: not before it was delivered
        assert await w.core.objects.find(nosy, run_id, some) is None
        with pytest.raises(NotFound):
            await w.core.objects.read(nosy, run_id, some)
    assert await w.core.objects.find(who, run_id, some) is None
    await w.pull(node)
    found = await w.core.objects.find(node, run_id, some)
    assert found is not None
    assert found.available
    assert await w.core.objects.find(other, run_id, some) is None
    reply = answer(sent.meta, records(150_000, fill=b"r"))
    await w.core.mail.push_reply(node, reply.full())
    assert await w.core.objects.find(node, run_id, some) is None  # answered: over
    assert await w.core.objects.find(who, run_id, next(iter(reply.contents))) is not None
    stranger = Principal.executor("e2", run_id=run_id + 1)
    assert await w.core.objects.find(stranger, run_id, next(iter(reply.contents))) is None
    await w.core.runs.stop(NO_ACCOUNT, run_id)
    with pytest.raises(RunOver):
        await w.core.objects.find(node, run_id, some)
    with pytest.raises(RunOver):
        await w.core.objects.store(node, run_id, some, sent.contents[some])


async def test_a_full_disk_costs_nothing_but_time(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records(200_000))
    await w.core.mail.push_instructions(who, [sent.bare()])
    big = next(k for k, v in sent.contents.items() if len(v) > 100_000)

    def full(self: Incoming, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Incoming, "write", full)
        with pytest.raises(TryAgainLater):
            await w.core.objects.store(who, work.run.run_id, big, sent.contents[big])
        receiver = w.core.objects.receive(who, work.run.run_id)
        with pytest.raises(TryAgainLater):
            await receiver.part(big, 0, len(sent.contents[big]), sent.contents[big])
        await receiver.abort()
    assert w.files() == []
    for object_id_, content in sent.contents.items():
        assert await w.core.objects.store(who, work.run.run_id, object_id_, content)
    assert len(await w.pull(node)) == 1


async def test_the_same_object_from_two_at_once_is_stored_once(w: World) -> None:
    nodes = [await w.node(), await w.node()]
    who, work, _stay = await w.running()
    out = [instruct(work.run.run_id, node.node_id, records()) for node in nodes]
    await w.push(who, out)
    back = [answer(each.meta, records(300_000, fill=b"s")) for each in out]
    for node, reply in zip(nodes, back, strict=True):
        await w.core.mail.push_reply(node, reply.bare())
    big = next(k for k, v in back[0].contents.items() if len(v) > 100_000)
    stored = await asyncio.gather(
        *(w.core.objects.store(node, work.run.run_id, big, back[0].contents[big]) for node in nodes)
    )
    assert stored == [True, True]
    assert len(w.files()) == 1


async def test_a_cancelled_push_leaves_no_half(w: World) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records(2_000_000))
    await w.core.mail.push_instructions(who, [sent.bare()])
    big = next(k for k, v in sent.contents.items() if len(v) > 100_000)
    for steps in range(12):
        task = asyncio.create_task(w.core.objects.store(who, work.run.run_id, big, sent.contents[big]))
        for _ in range(steps * 3):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        await w.core._ground.settle()
        assert len(w.files()) == (1 if await w.core.objects.expected(SYSTEM, work.run.run_id, big) == "here" else 0)


async def test_files_without_a_row_are_swept_at_the_start(w: World, tmp_path: Path) -> None:
    node = await w.node()
    who, work, _stay = await w.running()
    sent = instruct(work.run.run_id, node.node_id, records(200_000))
    await w.push(who, [])
    await w.core.mail.push_instructions(who, [sent.bare()])
    for object_id_, content in sent.contents.items():
        await w.core.objects.store(who, work.run.run_id, object_id_, content)
    [kept] = w.files()
    orphan = kept.with_name(f"{'0' * 64}-00000000")
    orphan.write_bytes(b"half")
    foreign = kept.with_name("not-ours")
    foreign.write_bytes(b"something else")
    await w.reopen()
    assert w.files() == sorted([kept, foreign])
