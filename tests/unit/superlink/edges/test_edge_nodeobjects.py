"""Objects in parts between our SuperLink and our SuperNodes, beside the calls for one object each of stock's."""

from __future__ import annotations

from typing import Any

import pytest
from edge_world import Hosted, Letter, Network, StockNode, model, refusal
from grpc import StatusCode
from trellis_wire.bulk import decode_part, encode_part
from trellis_wire.identity import sign_headers_grpc
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.appio.appio_pb2_grpc import NodeObjectsStub

LARGE = bytes(range(256)) * (11 << 10)  # 2.75 MiB: three chunks of 1 MiB


class Parts:
    """Our node's calls."""

    def __init__(self, net: Network, node: StockNode, hosted: Hosted) -> None:
        self.stub: Any = NodeObjectsStub(net.channels["fleet"])
        self.channel = net.channels["fleet"]
        self.node, self.run_id = node, hosted.run_id

    @property
    def metadata(self) -> list[tuple[str, Any]]:
        names = (("trellis-node-id", str(self.node.node_id)), ("trellis-run-id", str(self.run_id)))
        return [*sign_headers_grpc(self.node.key), *names]

    async def pull(self, *object_ids: str) -> dict[str, bytes]:
        found: dict[str, bytearray] = {}
        request = appio_pb2.PullObjectsRequest(object_ids=object_ids)
        async for part in self.stub.PullObjects(request, metadata=self.metadata, timeout=30):
            content = found.setdefault(part.object_id, bytearray())
            assert part.offset == len(content)
            assert len(part.data) <= 1 << 20
            content += part.data
        return {object_id: bytes(content) for object_id, content in found.items()}

    async def push(self, objects: dict[str, bytes], part: int = 1 << 20) -> list[str]:
        def parts() -> Any:
            for object_id, content in objects.items():
                for start in range(0, len(content), part):
                    yield appio_pb2.ObjectPart(
                        object_id=object_id, offset=start, size=len(content), data=content[start : start + part]
                    )

        return list((await self.stub.PushObjects(parts(), metadata=self.metadata, timeout=30)).stored)


async def delivered(net: Network, node: StockNode) -> tuple[Hosted, Letter]:
    """An instruction with a large model, which the node has pulled."""
    hosted = await net.running()
    letter = hosted.instruction(node.node_id, model(LARGE))
    await hosted.push(letter, inline=False)
    await hosted.send_objects(letter.objects)
    await node.pull()
    return hosted, letter


async def test_a_model_down_and_another_up_in_one_call_each(net: Network) -> None:
    node = await net.node()
    hosted, letter = await delivered(net, node)
    parts = Parts(net, node, hosted)
    assert await parts.pull(*letter.objects) == letter.objects

    reply = node.reply(letter.metadata, model(LARGE[::-1]))
    missing = await node.push(reply)
    assert await parts.push({one: reply.objects[one] for one in missing}) == missing
    answer = await hosted.replies(letter.id).read()
    assert answer.parcel.tree.object_id == reply.id


async def test_the_parts_are_protobufs(net: Network) -> None:
    node = await net.node()
    hosted, letter = await delivered(net, node)
    parts = Parts(net, node, hosted)
    raw = net.channels["fleet"].unary_stream("/trellis.appio.v1.NodeObjects/PullObjects")
    request = appio_pb2.PullObjectsRequest(object_ids=[letter.id]).SerializeToString()
    async for data in raw(request, metadata=parts.metadata, timeout=30):
        part = decode_part(data)
        again = encode_part(part.object_id, part.offset, part.size, part.data)
        assert appio_pb2.ObjectPart.FromString(data) == appio_pb2.ObjectPart.FromString(again)
        assert bytes(part.data) == letter.objects[letter.id]


async def test_nobody_sees_or_adds_what_is_not_its_own(net: Network) -> None:
    node, other = await net.node(), await net.node()
    hosted, letter = await delivered(net, node)
    foreign = Parts(net, other, hosted)
    assert (await refusal(foreign.pull(letter.id)))[0] is StatusCode.NOT_FOUND
    impostor = Parts(net, StockNode(net.fleet, node_id=node.node_id), hosted)
    assert (await refusal(impostor.pull(letter.id)))[0] is StatusCode.UNAUTHENTICATED
    own = Parts(net, node, hosted)
    unasked = node.reply(letter.metadata, model(b"unasked", 9))
    assert await own.push(unasked.objects) == []  # no message waits for them


@pytest.mark.parametrize("change", [b"other", None], ids=["another content", "cut short"])
async def test_a_wrong_object_is_refused_and_can_be_sent_again(net: Network, change: bytes | None) -> None:
    node = await net.node()
    hosted, letter = await delivered(net, node)
    parts = Parts(net, node, hosted)
    reply = node.reply(letter.metadata, model(LARGE[::-1]))
    missing = await node.push(reply)
    first = missing[0]
    wrong = reply.objects[first][:-5] + (change or b"")
    assert (await refusal(parts.push({first: wrong})))[0] is StatusCode.FAILED_PRECONDITION
    assert await parts.push({one: reply.objects[one] for one in missing}) == missing


async def test_calls_say_whose_they_are(net: Network) -> None:
    node = await net.node()
    hosted, letter = await delivered(net, node)
    parts = Parts(net, node, hosted)
    for headers in ([], [("trellis-node-id", "7")], [("trellis-node-id", "-1"), ("trellis-run-id", "x" * 30)]):
        call = parts.stub.PullObjects(
            appio_pb2.PullObjectsRequest(object_ids=[letter.id]),
            metadata=[*sign_headers_grpc(node.key), *headers],
            timeout=30,
        )
        assert (await refusal(call.read()))[0] is StatusCode.INVALID_ARGUMENT
    raw = parts.channel.stream_unary("/trellis.appio.v1.NodeObjects/PushObjects")
    status, _ = await refusal(raw(iter([b"\x22\x05abc"]), metadata=parts.metadata, timeout=30))
    assert status is StatusCode.INVALID_ARGUMENT
