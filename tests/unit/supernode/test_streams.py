"""Models between a SuperNode and our own SuperLink: in parts, and on to the other side while they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from node_world import Hand, Link, World, model, parts_of, reply_to, token, world
from trellis_supernode import objects, outbox
from trellis_supernode.ledger import Ledger
from trellis_supernode.objects import ObjectStore
from trellis_wire.bulk import Part
from trellis_wire.messages import ErrorCode
from trellis_wire.objects import Tree, encode_object, object_id
from trellis_wire.pb.appio import appio_pb2
from waits import until

CHUNKS = 3
DATA = os.urandom(12 << 20)  # three chunks of 5 MiB at most


class Gate:
    """Lets the SuperLink hand out so many objects."""

    def __init__(self, link: Link, open_for: int) -> None:
        self._slots = asyncio.Semaphore(open_for)
        link.gate = self._wait

    async def _wait(self, _object_id: str) -> None:
        await self._slots.acquire()

    def open(self) -> None:
        for _ in range(100):
            self._slots.release()


def asked_for(link: Link) -> Counter[str]:
    return Counter(one for request in link.called("PullObjects") for one in request.object_ids)


def chunks(tree: Tree) -> list[str]:
    return tree.post_order()[:CHUNKS]


async def read_part(w: World, hand: Hand, work: appio_pb2.Work, object_id: str) -> appio_pb2.ObjectPart:
    call = hand.stub.PullObjects(appio_pb2.PullObjectsRequest(object_ids=[object_id]), metadata=token(work))
    part = await asyncio.wait_for(call.read(), 10)
    call.cancel()
    assert isinstance(part, appio_pb2.ObjectPart)
    return part


async def test_a_model_goes_on_to_the_executor_while_it_comes(tmp_path: Path) -> None:
    async with world(tmp_path, streams=True) as w, w.node():
        gate = Gate(w.link, 1)
        hand = await w.hand()
        instruction = await w.link.instruct(model(DATA))
        work = await hand.work()  # handed out with its first chunk on its way
        first, second, *_ = chunks(instruction.tree)
        part = await read_part(w, hand, work, first)
        assert part.data == w.link.objects[first][: len(part.data)]
        reading = asyncio.create_task(read_part(w, hand, work, second))
        await asyncio.wait([reading], timeout=0.2)
        assert not reading.done()
        gate.open()
        assert (await reading).data
        await hand.finish(work, model(DATA[::-1]))
        answer = await w.answered(instruction)
        assert bytes(w.link.records(answer)["arrays"].items["w"].data).endswith(DATA[::-1])  # type: ignore[union-attr]
        assert len(w.link.called("PullObjects")) == 1
        assert not w.link.called("PullObject")
        assert not w.link.called("PushObject")


async def begin_reply(w: World, hand: Hand, work: appio_pb2.Work) -> tuple[Any, dict[str, bytes], list[str]]:
    """A large reply is announced to the node; its request, objects, and what the node lacks."""
    metadata, _ = await hand.read(work)
    request, contents = reply_to(metadata, model(DATA[::-1]), None)
    answer = await hand.stub.FinishTask(request, metadata=token(work))
    return request, contents, list(answer.missing_objects)


async def test_a_reply_goes_on_to_the_superlink_while_it_comes_but_counts_only_once_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, kept = asyncio.Event(), asyncio.Event()
    keep_reply = Ledger.keep_reply

    def slowly(self: Ledger, *given: Any) -> Any:
        async def work() -> None:
            keeping.set()
            await kept.wait()
            await keep_reply(self, *given)

        return asyncio.ensure_future(work())

    monkeypatch.setattr(Ledger, "keep_reply", slowly)
    async with world(tmp_path, streams=True) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        request, contents, missing = await begin_reply(w, hand, work)
        await hand.stub.PushObjects(parts_of(contents, missing[:1]), metadata=token(work))
        await until(lambda: missing[0] in w.link.objects, "the first chunk at the SuperLink")
        await hand.stub.PushObjects(parts_of(contents, missing[1:]), metadata=token(work))
        finishing = asyncio.ensure_future(hand.stub.FinishTask(request, metadata=token(work)))
        root = request.reply.tree.object_id
        await asyncio.wait_for(keeping.wait(), 10)
        await until(lambda: all(one in w.link.objects for one in contents if one != root), "all but the reply's own")
        assert root not in w.link.objects
        assert not w.link.answers(instruction)
        kept.set()
        assert not (await finishing).missing_objects
        await w.answered(instruction)
        assert len(w.link.called("PushObjects")) <= 2


async def test_an_executor_that_is_lost_in_its_reply_leaves_no_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis_supernode.desk.RECONNECT_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "PATIENCE", 0.3)
    async with world(tmp_path, streams=True) as w, w.node():
        first = await w.hand("first")
        instruction = await w.link.instruct()
        work = await first.work()
        _, contents, missing = await begin_reply(w, first, work)
        await first.stub.PushObjects(parts_of(contents, missing[:1]), metadata=token(work))
        await until(lambda: missing[0] in w.link.objects, "the first chunk at the SuperLink")
        await first.vanish()
        w.link.replies.clear()  # as our SuperLink does with an incomplete reply when another one comes
        second = await w.hand("second")
        again = await second.work()
        await second.finish(again, model(DATA, 5))
        answer = await w.answered(instruction)
        assert dict(w.link.records(answer)["config"].items) == {"n": 5}


async def test_after_a_break_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path, streams=True) as w, w.node():
        seen: list[str] = []

        async def fail_once(object_id: str) -> None:
            seen.append(object_id)
            if len(seen) == 2:
                w.link.failures["an object"].append(grpc.StatusCode.UNAVAILABLE)

        w.link.gate = fail_once
        hand = await w.hand()
        instruction = await w.link.instruct(model(DATA))
        work = await hand.work()
        _, records = await hand.read(work)
        assert bytes(records["arrays"].items["w"].data).endswith(DATA)  # type: ignore[union-attr]
        first, second, third = chunks(instruction.tree)
        assert asked_for(w.link) == {first: 1, second: 2, third: 2}
        await hand.finish(work)
        await w.answered(instruction)


async def test_a_push_that_breaks_is_offered_again(tmp_path: Path) -> None:
    async with world(tmp_path, streams=True) as w, w.node():
        w.link.failures["an object pushed"] += [grpc.StatusCode.UNAVAILABLE] * 3
        hand = await w.hand()
        instruction = await w.link.instruct()
        await hand.finish(await hand.work(), model(DATA))
        answer = await w.answered(instruction)
        assert bytes(w.link.records(answer)["arrays"].items["w"].data).endswith(DATA)  # type: ignore[union-attr]


async def test_an_instruction_that_does_not_get_complete_is_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path, streams=True) as w, w.node():
        gate = Gate(w.link, 1)
        hand = await w.hand()
        instruction = await w.link.instruct(model(DATA))
        work = await hand.work()
        for one in chunks(instruction.tree)[1:]:
            del w.link.objects[one]
        gate.open()
        answer = await w.answered(instruction)
        assert answer.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        order = await asyncio.wait_for(hand.orders.get(), 10)
        assert order.stop == work.token


async def test_an_older_superlink_is_asked_one_by_one(tmp_path: Path) -> None:
    async with world(tmp_path, streams=True) as w, w.node():
        hand = await w.hand()
        w.link.failures["PullObjects"].append(grpc.StatusCode.UNIMPLEMENTED)
        instruction = await w.link.instruct(model(DATA))
        work = await hand.work()
        await hand.read(work)
        assert len(w.link.called("PullObject")) == CHUNKS
        await hand.finish(work)
        await w.answered(instruction)


async def test_a_superlink_that_sends_none_of_the_objects_is_not_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_given: Any) -> AsyncIterator[Part]:
        parts: list[Part] = []
        for part in parts:
            yield part

    monkeypatch.setattr("trellis_supernode.fleet.FleetClient.pull_objects", nothing)
    async with world(tmp_path, streams=True) as w, w.node():
        await w.hand()
        instruction = await w.link.instruct(model(DATA))
        answer = await w.answered(instruction)
        assert answer.error.code == ErrorCode.MESSAGE_UNAVAILABLE


async def test_without_room_the_instruction_is_given_up_and_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, failing = ObjectStore._create, [True]

    def full(self: ObjectStore, *given: Any) -> Any:
        if failing:
            raise OSError(28, "No space left on device")
        return create(self, *given)

    monkeypatch.setattr(ObjectStore, "_create", full)
    async with world(tmp_path, streams=True) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct(model(DATA))
        work = await hand.work()
        order = await asyncio.wait_for(hand.orders.get(), 10)
        assert order.stop == work.token
        failing.clear()
        await hand.done(work)
        await hand.finish(await hand.work())
        await w.answered(instruction)


async def test_a_reply_that_the_disk_loses_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, failing = objects._sync, [True]

    def broken(path: Path) -> None:
        if failing:
            failing.pop()
            raise OSError(5, "Input/output error")
        sync(path)

    async with world(tmp_path) as w, w.node():
        hand = await w.hand()
        instruction = await w.link.instruct()
        work = await hand.work()
        request, contents, missing = await begin_reply(w, hand, work)
        monkeypatch.setattr(objects, "_sync", broken)
        await hand.stub.PushObjects(parts_of(contents, missing), metadata=token(work))
        lost: list[str] = []
        while not lost:  # told that it is to try again, where it came before the disk had failed
            with contextlib.suppress(grpc.aio.AioRpcError):
                lost += (await hand.stub.FinishTask(request, metadata=token(work))).missing_objects
        assert len(lost) == 1
        await hand.stub.PushObjects(parts_of(contents, lost), metadata=token(work))
        assert not (await hand.stub.FinishTask(request, metadata=token(work))).missing_objects
        await w.answered(instruction)
        assert not failing


async def test_an_object_that_comes_twice_is_one(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    store.open()
    content = encode_object("ArrayChunk", (), os.urandom(200_000))
    one = object_id(content)
    await asyncio.gather(*(store.put(7, one, content) for _ in range(3)))
    await store.keep(7, Tree(one))
    assert [path.name for path in (tmp_path / "7").iterdir()] == [one]
    assert await store.read(7, one) == content
    await store.close()
    again = ObjectStore(tmp_path)
    again.open()
    assert again.size(7, one) == len(content)
    await again.close()
