"""Fleet as stock SuperNodes use it (WIRE.md 2.2), and as they misuse it."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import grpc
import pytest
from edge_world import Hosted, Letter, Network, StockNode, network, records, refusal
from grpc import StatusCode
from trellis_superlink.edges import fleet as fleet_edge
from trellis_wire.identity import generate_key, public_pem, sign_headers_grpc
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, fleet_pb2, message_pb2, node_pb2, run_pb2


async def one_reply(hosted: Hosted, instruction_id: str) -> appio_pb2.Reply:
    async for reply in hosted.replies(instruction_id):
        assert isinstance(reply, appio_pb2.Reply)
        return reply
    raise AssertionError("the stream ended without a reply")


@pytest.mark.parametrize("old", [True, False], ids=["1.20-1.22", "1.23-1.39"])
async def test_the_conversation_of_a_stock_node(net: Network, old: bool) -> None:
    node = await net.node(old=old)
    assert await node.heartbeat()
    hosted = await net.running()
    sent = hosted.instruction(node.node_id, records(300_000))
    pushed = await hosted.push(sent, inline=False)
    assert list(pushed.refusals) == [""]
    pull = asyncio.create_task(node.pull())
    assert sorted(await hosted.send_objects({oid: sent.objects[oid] for oid in pushed.missing_objects})) == sorted(
        pushed.missing_objects
    )

    metadata, content = await node.take(await pull)
    assert metadata.message_id == sent.id
    assert content["config"].items == {"n": 1}
    reply = node.reply(metadata, records(200_000, b"y", 2))
    waiting = asyncio.create_task(one_reply(hosted, sent.id))
    await node.send(reply)

    got = await waiting
    assert got.instruction_id == sent.id
    assert got.parcel.tree.object_id == reply.id
    await node.leave()
    listed = await net.control.ListNodes(control_pb2.ListNodesRequest())
    assert node.node_id not in [one.node_id for one in listed.nodes_info]


async def test_a_pull_is_held_until_there_is_news(net: Network) -> None:
    node = await net.node()
    hosted = await net.running()
    pull = asyncio.create_task(node.pull())
    await net.held("fleet")
    assert not pull.done()
    began = time.monotonic()
    await hosted.push(hosted.instruction(node.node_id))
    assert len((await pull).messages_list) == 1
    assert time.monotonic() - began < 1.0


async def test_a_pull_without_news_ends_empty(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_edge, "HOLD", 0.2)
    monkeypatch.setattr(fleet_edge, "HOLD_JITTER", 0.0)
    node = await net.node()
    answer = await node.pull()
    assert answer == fleet_pb2.PullMessagesResponse()


async def test_what_a_broken_pull_had_taken_comes_again(net: Network) -> None:
    node = await net.node()
    hosted = await net.running()
    sent = hosted.instruction(node.node_id)
    pull = asyncio.create_task(node.pull())
    await net.held("fleet")
    pull.cancel()
    await asyncio.gather(pull, return_exceptions=True)
    await hosted.push(sent)
    lost = await node.pull()
    assert lost.messages_list[0].metadata.message_id == sent.id
    again = await node.pull()  # as after a crash: unanswered, and asks for the next one
    assert again.messages_list[0].metadata.message_id == sent.id
    metadata, _ = await node.take(again)
    await node.send(node.reply(metadata, records()))


async def test_our_node_says_what_it_has_and_gets_objects_along(net: Network) -> None:
    node = await net.node()
    hosted = await net.running()
    letters = [hosted.instruction(node.node_id, records(number=n)) for n in range(3)]
    await hosted.push(*letters)
    request = fleet_pb2.PullMessagesRequest(node=node.node, trellis_capacity=2, trellis_known_runs=[hosted.run_id])
    ours = ("trellis-capabilities", "inline")
    first = await node.call("PullMessages", request, ours)
    taken = [one.metadata.message_id for one in first.messages_list]
    assert len(taken) == 2
    by_id = {letter.id: letter for letter in letters}
    inline = {one.object_id: one.content for one in first.trellis_objects}
    assert inline.items() >= {**by_id[taken[0]].objects, **by_id[taken[1]].objects}.items()
    assert not first.trellis_ended_runs
    request.trellis_working_on.extend(taken)
    second = await node.call("PullMessages", request, ours)
    assert [one.metadata.message_id for one in second.messages_list] == list(by_id.keys() - set(taken))

    reply = node.reply(by_id[taken[0]].metadata, records(50, b"z"))
    push = fleet_pb2.PushMessagesRequest(
        node=node.node,
        messages_list=[reply.to_edge()],
        message_object_trees=[reply.tree.to_edge()],
        trellis_objects=[fleet_pb2.InlineObject(object_id=i, content=c) for i, c in reply.objects.items()],
        clientapp_runtime_list=[0.25],
    )
    assert not (await node.call("PushMessages", push, ours)).objects_to_push
    assert (await one_reply(hosted, taken[0])).parcel.tree.object_id == reply.id

    await net.control.StopRun(control_pb2.StopRunRequest(run_id=hosted.run_id))
    ended = await node.call("PullMessages", request, ours)
    assert list(ended.trellis_ended_runs) == [hosted.run_id]


async def test_our_capability_is_announced_to_our_node_only(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_edge, "HOLD", 0.05)
    monkeypatch.setattr(fleet_edge, "HOLD_JITTER", 0.0)
    node = await net.node()
    for extra, expected in (([("trellis-capabilities", "inline")], "inline,objects"), ([], None)):
        call = net.fleet.PullMessages(
            fleet_pb2.PullMessagesRequest(node=node.node), metadata=[*sign_headers_grpc(node.key), *extra]
        )
        await call
        assert dict(await call.initial_metadata()).get("trellis-capabilities") == expected


# ---- who asks ----------------------------------------------------------------------------------------------------


async def test_unsigned_and_wrongly_signed_calls(net: Network) -> None:
    node = await net.node()
    request = fleet_pb2.PullMessagesRequest(node=node.node)
    assert await refusal(net.fleet.PullMessages(request)) == (
        StatusCode.UNAUTHENTICATED,
        "Missing authentication metadata",
    )
    bad = [("flwr-public-key-bin", public_pem(node.key)), ("flwr-timestamp", "2020-01-01T00:00:00+00:00")]
    bad.append(("flwr-signature-bin", b"no"))
    assert await refusal(net.fleet.PullMessages(request, metadata=bad)) == (
        StatusCode.UNAUTHENTICATED,
        "Invalid timestamp",
    )


async def test_a_node_cannot_speak_for_another(net: Network) -> None:
    one, other = await net.node(), await net.node()
    mask = StockNode(net.fleet, key=other.key, node_id=one.node_id)
    assert (await refusal(mask.heartbeat()))[0] is StatusCode.UNAUTHENTICATED
    pem = public_pem(one.key)
    stolen = other.call("ActivateNode", fleet_pb2.ActivateNodeRequest(public_key=pem, heartbeat_interval=30))
    assert (await refusal(stolen))[0] is StatusCode.UNAUTHENTICATED


async def test_an_unknown_signed_pair_is_adopted_where_registration_is_open(net: Network, tmp_path: Path) -> None:
    stranger = StockNode(net.fleet, node_id=987654321987654321)
    assert await stranger.heartbeat()
    async with network(tmp_path / "closed", enable_supernode_auth=True) as closed:
        stranger = StockNode(closed.fleet, node_id=987654321987654321)
        assert (await refusal(stranger.heartbeat()))[0] is StatusCode.UNAUTHENTICATED
        status, text = await refusal(stranger.join())
        assert status is StatusCode.FAILED_PRECONDITION
        assert text
        key = generate_key()
        enrolled = await closed.control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=public_pem(key)))
        node = StockNode(closed.fleet, key=key)
        activate = fleet_pb2.ActivateNodeRequest(public_key=public_pem(key), heartbeat_interval=30)
        assert (await node.call("ActivateNode", activate)).node_id == enrolled.node_id


async def test_a_wrong_heartbeat_interval(net: Network) -> None:
    node = await net.node()
    request = fleet_pb2.ActivateNodeRequest(public_key=public_pem(node.key), heartbeat_interval=1)
    assert (await refusal(node.call("ActivateNode", request)))[0] is StatusCode.INVALID_ARGUMENT


# ---- bad input ---------------------------------------------------------------------------------------------------


async def delivered(net: Network) -> tuple[StockNode, Hosted, Letter]:
    node = await net.node()
    hosted = await net.running()
    sent = hosted.instruction(node.node_id)
    await hosted.push(sent)
    await node.pull()
    return node, hosted, sent


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x22\xff\xff\xff\x7fabc", b"\x03", b"\x0d\x01"])
@pytest.mark.parametrize("method", ["PullMessages", "PushMessages", "PushObject", "CreateNode", "GetRun"])
async def test_malformed_protobuf(net: Network, method: str, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    node = await net.node()
    raw = net.channels["fleet"].unary_unary(f"/flwr.proto.Fleet/{method}")
    with caplog.at_level(logging.WARNING):
        status, text = await refusal(raw(data, metadata=sign_headers_grpc(node.key)))
    assert status is StatusCode.INVALID_ARGUMENT
    assert "malformed" in text
    assert any(method in record.getMessage() for record in caplog.records)


async def test_an_oversized_message_is_refused_unread(net: Network, caplog: pytest.LogCaptureFixture) -> None:
    node = await net.node()
    with caplog.at_level(logging.WARNING):
        status, _ = await refusal(node.push_object(1, "0" * 64, bytes(40 << 20)))
        assert status is StatusCode.RESOURCE_EXHAUSTED
        assert await node.heartbeat()
    assert any("PushObject" in record.getMessage() for record in caplog.records)


async def test_replies_that_break_a_rule_change_nothing(net: Network, caplog: pytest.LogCaptureFixture) -> None:
    node, hosted, sent = await delivered(net)
    stranger = await net.node()
    wrong = [
        node.reply(sent.metadata, records(), reply_to_message_id="0" * 64),
        node.reply(sent.metadata, records(), run_id=hosted.run_id + 1),
        node.reply(sent.metadata, records(), dst_node_id=node.node_id),
        node.reply(sent.metadata, records(), ttl=7200.0 * 24),
        node.reply(sent.metadata, records(), reply_to_message_id=""),
    ]
    with caplog.at_level(logging.WARNING):
        for letter in wrong:
            try:
                assert await node.push(letter) == []
            except grpc.aio.AioRpcError as error:
                assert error.code() in (StatusCode.PERMISSION_DENIED, StatusCode.NOT_FOUND)  # noqa: PT017
        assert await stranger.push(stranger.reply(sent.metadata, records())) == []
    assert sum("Reply not taken" in record.getMessage() for record in caplog.records) >= 4
    good = node.reply(sent.metadata, records())
    await node.send(good)
    assert (await one_reply(hosted, sent.id)).parcel.tree.object_id == good.id


async def test_objects_with_wrong_hash_head_or_children(net: Network) -> None:
    node, hosted, sent = await delivered(net)
    reply = node.reply(sent.metadata, records(90, b"y", 2))
    missing = await node.push(reply)
    assert set(missing) == set(reply.objects)
    leaf = missing[0]
    assert not await node.push_object(hosted.run_id, leaf, reply.objects[leaf] + b"!")
    assert not await node.push_object(hosted.run_id, "a" * 64, b"ArrayChunk  1\0x")
    assert not await node.push_object(hosted.run_id, "../../etc/passwd", b"ArrayChunk  1\0x")
    await node.send(reply)
    assert (await one_reply(hosted, sent.id)).parcel.tree.object_id == reply.id


async def test_trees_that_are_no_trees(net: Network) -> None:
    node, _, sent = await delivered(net)
    reply = node.reply(sent.metadata, records())
    cyclic = message_pb2.ObjectTree(object_id=reply.id, children=[message_pb2.ObjectTree(object_id=reply.id)])
    foreign = message_pb2.ObjectTree(object_id="f" * 64)
    no_id = message_pb2.ObjectTree(object_id="nonsense")
    for tree in (cyclic, foreign, no_id):
        request = fleet_pb2.PushMessagesRequest(
            node=node.node, messages_list=[reply.to_edge()], message_object_trees=[tree]
        )
        assert (await refusal(node.call("PushMessages", request)))[0] is StatusCode.FAILED_PRECONDITION
    lonely = fleet_pb2.PushMessagesRequest(node=node.node, messages_list=[reply.to_edge()])
    assert (await refusal(node.call("PushMessages", lonely)))[0] is StatusCode.INVALID_ARGUMENT


async def test_unknown_things_are_not_found(net: Network) -> None:
    node = await net.node()
    unknown = await refusal(node.call("GetRun", run_pb2.GetRunRequest(node=node.node, run_id=1)))
    assert unknown[0] is StatusCode.NOT_FOUND
    fab = run_pb2.GetFabRequest(node=node.node, hash_str="0" * 64, run_id=1)
    assert (await refusal(node.call("GetFab", fab)))[0] is StatusCode.NOT_FOUND
    assert (await refusal(node.call("PullMessages", fleet_pb2.PullMessagesRequest(node=node_pb2.Node()))))[0] is (
        StatusCode.UNAUTHENTICATED
    )


async def test_a_run_that_is_over_is_permission_denied(net: Network) -> None:
    node, hosted, sent = await delivered(net)
    reply = node.reply(sent.metadata, records())
    missing = await node.push(reply)
    await net.control.StopRun(control_pb2.StopRunRequest(run_id=hosted.run_id))
    calls = [
        node.push(reply),
        node.push_object(hosted.run_id, missing[0], reply.objects[missing[0]]),
        node.pull_object(hosted.run_id, sent.id),
        node.call("GetRun", run_pb2.GetRunRequest(node=node.node, run_id=hosted.run_id)),
    ]
    for call in calls:
        assert (await refusal(call))[0] is StatusCode.PERMISSION_DENIED


async def test_methods_that_are_not_there_are_explained(net: Network) -> None:
    channel = net.channels["fleet"]
    status, text = await refusal(channel.unary_unary("/flwr.proto.Fleet/Ping")(b""))
    assert (status, "1.20" in text) == (StatusCode.UNIMPLEMENTED, True)
    status, text = await refusal(channel.unary_unary("/flwr.proto.Fleet/Join")(b""))
    assert (status, "'Join'" in text) == (StatusCode.UNIMPLEMENTED, True)


async def test_held_pulls_are_answered_when_the_superlink_stops(net: Network) -> None:
    node = await net.node()
    pull = asyncio.create_task(node.pull())
    await net.held("fleet")
    net.link.drain.begin()
    assert len((await asyncio.wait_for(pull, 2)).messages_list) == 0
