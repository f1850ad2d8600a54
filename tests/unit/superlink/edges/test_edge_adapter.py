"""Fleet inside GrpcAdapter: the same conversation as without it, and what is no call of Fleet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from edge_world import Network, StockNode, records, refusal
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from trellis_superlink.edges.adapter import METHODS
from trellis_wire.identity import generate_key, sign_headers_grpc
from trellis_wire.messages import Metadata
from trellis_wire.pb.edge import fleet_pb2
from trellis_wire.pb.edge.fleet_pb2_grpc import GrpcAdapterStub

FLEET = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods_by_name


class Wrapped:
    """FleetStub's calls as a SuperNode with --grpc-adapter makes them."""

    def __init__(self, net: Network) -> None:
        self._stub: Any = GrpcAdapterStub(net.channels["fleet"])

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, **options: Any) -> Any:
            name = type(request).__name__
            sent = fleet_pb2.MessageContainer(
                metadata={"flower-version": "1.24.0", "grpc-message-qualname": name},
                grpc_message_name=name,
                grpc_message_content=request.SerializeToString(),
            )
            answer = await self._stub.SendReceive(sent, **options)
            kind = FLEET[method].output_type
            assert answer.grpc_message_name == kind.name
            return GetMessageClass(kind).FromString(answer.grpc_message_content)

        return call


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
    metadata = sign_headers_grpc(generate_key())
    strange = fleet_pb2.MessageContainer(grpc_message_name="StartRunRequest")
    status, text = await refusal(stub.SendReceive(strange, metadata=metadata))
    assert (status, "StartRunRequest" in text) == (StatusCode.UNIMPLEMENTED, True)
    bad = fleet_pb2.MessageContainer(grpc_message_name="PullMessagesRequest", grpc_message_content=b"\xff")
    assert (await refusal(stub.SendReceive(bad, metadata=metadata)))[0] is StatusCode.INVALID_ARGUMENT
    raw = net.channels["fleet"].unary_unary("/flwr.proto.GrpcAdapter/SendReceive")
    assert (await refusal(raw(b"\xff", metadata=metadata)))[0] is StatusCode.INVALID_ARGUMENT
    unsigned = fleet_pb2.MessageContainer(grpc_message_name="PullMessagesRequest")
    assert (await refusal(stub.SendReceive(unsigned)))[0] is StatusCode.UNAUTHENTICATED
