"""ServerAppIO: executors that come, go, come back, and the runs they speak for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest
from edge_world import Executor, Network, StreamEnded, network, records, refusal
from grpc import StatusCode
from trellis_superlink.edges import serverappio
from trellis_superlink.edges.rpcs import REFUSED_SERVICES
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2


async def test_a_waiting_executor_is_handed_a_run_by_push(net: Network) -> None:
    executor = Executor(net.appio)
    await executor.attend()
    began = time.monotonic()
    run_id = await net.submit()
    hosted = await executor.work()
    assert time.monotonic() - began < 1.0
    assert (hosted.run_id, hosted.work.run.node_id, hosted.work.run.fab_id) == (run_id, 1, "somebody/small")
    fab = await hosted.call("GetFab", appio_pb2.GetFabRequest(fab_hash=hosted.work.run.fab_hash))
    assert fab.content == net.fab
    await hosted.call("StartRunning", appio_pb2.StartRunningRequest())
    node = await net.node()
    nodes = await hosted.call("GetNodes", appio_pb2.GetNodesRequest())
    assert [one.node_id for one in nodes.nodes] == [node.node_id]
    await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))
    run = (await net.control.ListRuns(control_pb2.ListRunsRequest(run_id=run_id))).run_dict[run_id]
    assert (run.status.status, run.status.sub_status) == ("finished", "completed")
    status, _ = await refusal(hosted.push(hosted.instruction(node.node_id)))
    assert status is StatusCode.PERMISSION_DENIED


async def test_the_executor_is_told_when_the_user_stops_the_run(net: Network) -> None:
    node = await net.node()
    executor = Executor(net.appio)
    await executor.attend()
    run_id = await net.submit()
    hosted = await executor.work()
    await net.control.StopRun(control_pb2.StopRunRequest(run_id=run_id))
    order = await executor.order()
    assert order.stop == hosted.work.token
    status, _ = await refusal(hosted.push(hosted.instruction(node.node_id)))
    assert status is StatusCode.PERMISSION_DENIED


async def test_after_a_broken_stream_the_executor_keeps_its_work(net: Network) -> None:
    executor = Executor(net.appio)
    await executor.attend()
    await net.submit()
    hosted = await executor.work()
    executor.call.cancel()
    again = Executor(net.appio)
    await again.attend(holding=[hosted.work.token, "made up"])
    assert (await again.order()).drop == "made up"
    await hosted.call("StartRunning", appio_pb2.StartRunningRequest())


async def test_work_handed_back_goes_to_another(net: Network) -> None:
    one = Executor(net.appio, "one")
    await one.attend()
    run_id = await net.submit()
    hosted = await one.work()
    two = Executor(net.appio, "two")
    await two.attend()
    one.report(free_slots=0)
    one.report(handed_back=hosted.work.token)
    moved = await two.work()
    assert moved.run_id == run_id
    assert moved.work.token != hosted.work.token


@pytest.mark.parametrize("token", ["", "wrong", "secre", "Unicode?"])
async def test_the_join_token(tmp_path: Path, token: str) -> None:
    async with network(tmp_path, join_token="secret") as net:
        executor = Executor(net.appio, join_token=token)
        with pytest.raises(StreamEnded, match="UNAUTHENTICATED"):
            await executor.attend()
        right = Executor(net.appio, join_token="secret")
        await right.attend()


async def test_the_join_token_is_renewed_in_turn(tmp_path: Path) -> None:
    """First the SuperLink takes both, then executors change, then it takes the new one only."""
    file = tmp_path / "join-token"
    file.write_text("old")

    async def let_in(net: Network, token: str) -> bool:
        executor = Executor(net.appio, token, join_token=token)
        try:
            await executor.attend()
        except StreamEnded:
            return False
        return True

    async with network(tmp_path, join_token="old", secret_files={"join_token": file}) as net:
        told = []
        for content in ("old", "new\nold", "new"):
            file.write_text(content)
            told.append([await let_in(net, token) for token in ("old", "new")])
    assert told == [[True, False], [True, True], [False, True]]


async def test_calls_without_a_run_token_or_with_a_wrong_one(net: Network) -> None:
    for metadata in ([], [("trellis-token", "guess")]):
        call = net.appio.GetNodes(appio_pb2.GetNodesRequest(), metadata=metadata)
        assert (await refusal(call))[0] is StatusCode.UNAUTHENTICATED


async def test_a_run_token_opens_nothing_once_its_run_is_over(net: Network) -> None:
    node = await net.node()
    hosted = await net.running()
    letter = hosted.instruction(node.node_id, records(150_000, b"s"))
    content = letter.tree.children[0]
    ending = appio_pb2.FinishRunRequest(
        outcome=appio_pb2.FinishRunRequest.COMPLETED, state=appio_pb2.Parcel(tree=content.to_appio())
    )
    missing = (await hosted.call("FinishRun", ending)).missing_objects
    await hosted.send_objects({oid: letter.objects[oid] for oid in missing})
    await hosted.call("FinishRun", ending)

    async def pulled() -> None:
        request = appio_pb2.PullObjectsRequest(object_ids=[content.object_id])
        async for _part in hosted.stub.PullObjects(request, metadata=hosted.metadata):
            pass

    attempts: list[Awaitable[object]] = [
        hosted.call("GetFab", appio_pb2.GetFabRequest(fab_hash=hosted.work.run.fab_hash)),
        hosted.call("GetNodes", appio_pb2.GetNodesRequest()),
        hosted.call("StartRunning", appio_pb2.StartRunningRequest()),
        hosted.push(letter),
        hosted.send_objects({letter.id: letter.objects[letter.id]}),
        hosted.replies(letter.id).read(),
        hosted.stub.PushArtifact(iter([appio_pb2.ArtifactPart(name="a.zip", data=b"a")]), metadata=hosted.metadata),
        pulled(),
    ]
    for attempt in attempts:
        assert (await refusal(attempt))[0] is StatusCode.PERMISSION_DENIED


async def test_a_stream_starts_with_a_hello_and_has_one(net: Network) -> None:
    call = net.appio.Attend(iter([appio_pb2.ExecutorReport(alive=True)]))
    assert (await refusal(call.read()))[0] is StatusCode.INVALID_ARGUMENT
    call = net.appio.Attend(iter([appio_pb2.ExecutorReport(hello=appio_pb2.ExecutorHello(slots=1))]))
    assert (await refusal(call.read()))[0] is StatusCode.INVALID_ARGUMENT
    executor = Executor(net.appio)
    await executor.attend()
    executor.report(hello=appio_pb2.ExecutorHello(executor_id="again"))
    with pytest.raises(StreamEnded, match="INVALID_ARGUMENT"):
        await executor.order()


async def test_a_silent_executor_is_let_go(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverappio, "SILENCE", 0.3)
    executor = Executor(net.appio)
    await executor.attend()
    with pytest.raises(StreamEnded, match="UNAVAILABLE"):
        await executor.order()


async def test_executors_are_told_to_come_again_when_the_superlink_stops(net: Network) -> None:
    executor = Executor(net.appio)
    await executor.attend()
    net.link.drain.begin()
    with pytest.raises(StreamEnded, match="UNAVAILABLE"):
        await executor.order()


# ---- messages ----------------------------------------------------------------------------------------------------


async def test_bad_parcels_are_refused_one_by_one(net: Network) -> None:
    node = await net.node()
    hosted = await net.running()
    good = hosted.instruction(node.node_id)
    rootless = hosted.instruction(node.node_id, records(number=2)).to_appio(inline=False)
    del rootless.objects[:]
    altered = hosted.instruction(node.node_id, records(number=3)).to_appio(inline=False)
    altered.objects[0].content += b"!"
    nowhere = hosted.instruction(node.node_id + 1)
    other_run = hosted.instruction(node.node_id, run_id=hosted.run_id + 1)
    expired = hosted.instruction(node.node_id, created_at=time.time() - 7200, ttl=10.0)
    request = appio_pb2.PushMessagesRequest(
        messages=[rootless, altered, nowhere.to_appio(), other_run.to_appio(), expired.to_appio(), good.to_appio()]
    )
    answer = await hosted.call("PushMessages", request)
    assert [bool(one) for one in answer.refusals] == [True] * 5 + [False]
    assert not answer.missing_objects
    pulled = await node.pull()
    assert [one.metadata.message_id for one in pulled.messages_list] == [good.id]


async def test_objects_come_in_parts_and_are_asked_for_once(net: Network) -> None:
    one, two = await net.node(), await net.node()
    hosted = await net.running()
    model = records(3_500_000, b"m")
    letters = [hosted.instruction(node.node_id, model) for node in (one, two)]
    answer = await hosted.push(*letters, inline=False)
    everything = {**letters[0].objects, **letters[1].objects}
    assert len(answer.missing_objects) == len(set(answer.missing_objects)) == len(everything) - 2
    await hosted.send_objects({oid: everything[oid] for oid in answer.missing_objects})
    for node, letter in zip((one, two), letters, strict=True):
        metadata, content = await node.take(await node.pull())
        assert metadata.message_id == letter.id
        assert content["arrays"] == model["arrays"]
    assert not (await hosted.push(hosted.instruction(one.node_id, model), inline=True)).missing_objects


async def test_parts_with_gaps_or_a_wrong_hash(net: Network) -> None:
    node = await net.node()
    hosted = await net.running()
    letter = hosted.instruction(node.node_id, records(200_000, b"p"))
    missing = (await hosted.push(letter, inline=False)).missing_objects
    large = max(missing, key=lambda oid: len(letter.objects[oid]))
    content = letter.objects[large]

    async def push(*parts: appio_pb2.ObjectPart) -> None:
        await hosted.stub.PushObjects(iter(parts), metadata=hosted.metadata)

    half = len(content) // 2
    size = len(content)
    first = appio_pb2.ObjectPart(object_id=large, offset=0, size=size, data=content[:half])
    gap = appio_pb2.ObjectPart(object_id=large, offset=half + 1, size=size, data=content[half + 1 :])
    forged = appio_pb2.ObjectPart(object_id=large, offset=0, size=size, data=bytes(size))
    for parts in ([first, gap], [first], [forged]):
        assert (await refusal(push(*parts)))[0] is StatusCode.FAILED_PRECONDITION
    await hosted.send_objects({oid: letter.objects[oid] for oid in missing})
    assert (await node.pull()).messages_list[0].metadata.message_id == letter.id


async def test_replies_stream_as_they_come_and_are_pulled_in_parts(net: Network) -> None:
    nodes = [await net.node() for _ in range(2)]
    hosted = await net.running()
    letters = [hosted.instruction(node.node_id) for node in nodes]
    await hosted.push(*letters)
    stream = hosted.replies(*(letter.id for letter in letters))
    sent = []
    for node in nodes:
        metadata, _ = await node.take(await node.pull())
        reply = node.reply(metadata, records(2_500_000, b"r", node.node_id % 1000))
        await node.send(reply)
        sent.append(reply)
        got = await asyncio.wait_for(stream.read(), 5)
        assert got.parcel.tree.object_id == reply.id
        inline = {one.object_id for one in got.parcel.objects}
        assert reply.id in inline
        wanted = [oid for oid in reply.objects if oid not in inline]
        pulled: dict[str, bytearray] = {}
        request = appio_pb2.PullObjectsRequest(object_ids=wanted)
        async for part in hosted.stub.PullObjects(request, metadata=hosted.metadata):
            assert len(part.data) <= 1 << 20
            assert part.offset == len(pulled.setdefault(part.object_id, bytearray()))
            pulled[part.object_id] += part.data
        assert {oid: bytes(content) for oid, content in pulled.items()} == {oid: reply.objects[oid] for oid in wanted}
        await hosted.call("ConfirmReceived", appio_pb2.ConfirmReceivedRequest(message_ids=[reply.id]))
    assert not isinstance(await stream.read(), appio_pb2.Reply)


async def test_a_finished_run_keeps_its_state_once_its_objects_are_there(net: Network) -> None:
    hosted = await net.running()
    letter = hosted.instruction(9, records(150_000, b"s"))
    tree = letter.tree.children[0]
    state = appio_pb2.Parcel(tree=tree.to_appio())
    request = appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED, state=state)
    missing = (await hosted.call("FinishRun", request)).missing_objects
    assert set(missing) == set(tree.post_order())
    await hosted.send_objects({oid: letter.objects[oid] for oid in missing})
    assert not (await hosted.call("FinishRun", request)).missing_objects
    no_outcome = await refusal(hosted.call("FinishRun", appio_pb2.FinishRunRequest()))
    assert no_outcome[0] in (StatusCode.PERMISSION_DENIED, StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    "method", ["ServerAppIo/ListAppsToLaunch", "ServerAppIo/PullAppInputs", "Runtime/ClaimTask", "Runtime/GetNodes"]
)
async def test_stock_executors_hear_the_name_of_ours(net: Network, method: str) -> None:
    call = net.channels["appio"].unary_unary(f"/flwr.proto.{method}")(b"")
    sentence = REFUSED_SERVICES[f"flwr.proto.{method.partition('/')[0]}"].text
    assert await refusal(call) == (StatusCode.UNIMPLEMENTED, sentence)
    assert "trellis-serverapp" in sentence


async def test_malformed_requests(net: Network) -> None:
    hosted = await net.running()
    for method in ("PushMessages", "PullObjects", "FinishRun", "PushLogs", "PushObjects"):
        call = net.channels["appio"].unary_unary(f"/trellis.appio.v1.ServerAppIO/{method}")
        assert (await refusal(call(b"\xff", metadata=hosted.metadata)))[0] is StatusCode.INVALID_ARGUMENT
