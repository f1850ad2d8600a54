"""Fleet inside GrpcAdapter: the same conversation as without it, and what is no call of Fleet."""

from __future__ import annotations

from typing import Any

from edge_world import FLEET, Network, StockNode, Wrapped, records, refusal
from grpc import StatusCode
from trellis_superlink.edges.adapter import METHODS
from trellis_wire.identity import generate_key, sign_headers_grpc
from trellis_wire.messages import Metadata
from trellis_wire.pb.edge import fleet_pb2
from trellis_wire.pb.edge.fleet_pb2_grpc import GrpcAdapterStub


def test_every_call_of_fleet_has_its_request() -> None:
    assert sorted(METHODS.values()) == sorted(FLEET)


async def test_a_round_through_the_adapter(net: Network) -> None:
    node = StockNode(Wrapped(net))
    await node.join()
    assert await node.heartbeat()
    await net.submit()
    hosted = await net.running()
    letter = hosted.instruction(node.node_id, records(200_000))
    await hosted.push(letter)
    answer = await node.pull()
    message = answer.messages_list[0]
    assert message.metadata.message_id == letter.id
    pulled = await node.pull_object(hosted.run_id, letter.id)
    assert pulled.object_content == letter.objects[letter.id]
    reply = node.reply(Metadata.from_edge(message.metadata), records(300_000, b"y"))
    await node.send(reply)
    async for parcel in hosted.replies(letter.id):
        assert parcel.parcel.tree.object_id == reply.id
        break
    await node.leave()


async def test_what_is_no_call_of_fleet(net: Network) -> None:
    stub: Any = GrpcAdapterStub(net.channels["fleet"])
    key = generate_key()
    strange = fleet_pb2.MessageContainer(grpc_message_name="StartRunRequest")
    status, text = await refusal(stub.SendReceive(strange, metadata=sign_headers_grpc(key)))
    assert (status, "StartRunRequest" in text) == (StatusCode.UNIMPLEMENTED, True)
    bad = fleet_pb2.MessageContainer(grpc_message_name="PullMessagesRequest", grpc_message_content=b"\xff")
    assert (await refusal(stub.SendReceive(bad, metadata=sign_headers_grpc(key))))[0] is StatusCode.INVALID_ARGUMENT
    raw = net.channels["fleet"].unary_unary("/flwr.proto.GrpcAdapter/SendReceive")
    assert (await refusal(raw(b"\xff", metadata=sign_headers_grpc(key))))[0] is StatusCode.INVALID_ARGUMENT
    unsigned = fleet_pb2.MessageContainer(grpc_message_name="PullMessagesRequest")
    assert (await refusal(stub.SendReceive(unsigned)))[0] is StatusCode.UNAUTHENTICATED
