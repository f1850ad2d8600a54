"""Objects in parts over one stream: what executors and our own SuperNodes use in place of a call for each object."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable

from grpc import StatusCode
from trellis_wire.bulk import Malformed, decode_part, encode_part
from trellis_wire.pb.appio import appio_pb2

from trellis_superlink.core.objects import PART, Part, Receiver
from trellis_superlink.core.principals import Principal
from trellis_superlink.core.service import Core
from trellis_superlink.edges.errors import FLEET_ANSWERS, EdgeError
from trellis_superlink.edges.flow import Flow
from trellis_superlink.edges.rpc import Call, Service, malformed

_log = logging.getLogger(__name__)

SERVICE = "trellis.appio.v1.NodeObjects"
NODE, RUN = "trellis-node-id", "trellis-run-id"
MAX_REQUEST = 32 * 1024 * 1024
"""Bytes of one request; objects come in parts of 1 MiB."""


async def take(call: Call, flow: Flow, peer: Hashable, receiver: Receiver) -> None:
    """Takes a stream of parts to its end and answers which objects are here."""
    try:
        while True:
            # One part of this stream is in memory at a time; over all streams the budget counts them.
            async with flow.hold(PART, peer):
                data = await call.read()
                if data is None:
                    break
                try:
                    part = decode_part(data)
                except Malformed as error:
                    raise malformed("ObjectPart", len(data)) from error
                await receiver.part(part.object_id, part.offset, part.size, part.data)
                del part, data
        if not call.received:  # grpc itself refuses what is too large
            raise EdgeError(StatusCode.INVALID_ARGUMENT, "PushObjects came without a part, or with one too large.")
        stored = await receiver.finish()
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):  # grpc itself refuses what is too large, and says no more
            _log.warning("PushObjects broke off: the peer went away or sent a part of more than %d bytes", MAX_REQUEST)
        await receiver.abort()
        raise
    await call.send(appio_pb2.PushObjectsResponse(stored=stored))


async def hand_out(call: Call, flow: Flow, peer: Hashable, parts: AsyncIterator[Part]) -> None:
    """Sends parts as fast as the peer takes them; one of them is in memory at a time."""
    while True:
        async with flow.hold(PART, peer):
            part = await anext(parts, None)
            if part is None:
                return
            await call.send(encode_part(part.object_id, part.offset, part.size, part.data))


class NodeObjects:
    """The objects of a run's messages, for our own SuperNodes."""

    def __init__(self, core: Core, flow: Flow) -> None:
        self._core = core
        self._flow = flow

    def service(self) -> Service:
        return Service(
            SERVICE,
            "fleet",
            {"PullObjects": self.pull_objects, "PushObjects": self.push_objects},
            answers=FLEET_ANSWERS,
        )

    async def _node(self, call: Call) -> tuple[Principal, int]:
        """Who asks, and about which run; the key has to be that of the node it names."""
        credential = call.credential()
        numbers = [call.header(NODE), call.header(RUN)]
        if not all(number.isascii() and number.isdigit() and len(number) <= 20 for number in numbers):
            raise EdgeError(StatusCode.INVALID_ARGUMENT, f"The call names its node and run in {NODE} and {RUN}.")
        node_id, run_id = map(int, numbers)
        call.note(node_id=node_id, run_id=run_id)
        call.who = await self._core.nodes.authenticate(node_id, credential.public_key)
        return call.who, run_id

    async def pull_objects(self, call: Call) -> None:
        who, run_id = await self._node(call)
        request = await call.request(appio_pb2.PullObjectsRequest)
        await hand_out(call, self._flow, who.id, self._core.objects.stream(who, run_id, list(request.object_ids)))

    async def push_objects(self, call: Call) -> None:
        """Objects that no message of the node's waits for are passed over: they are not among those stored."""
        who, run_id = await self._node(call)
        await take(call, self._flow, who.id, self._core.objects.receive(who, run_id))
