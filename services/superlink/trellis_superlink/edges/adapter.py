"""Fleet inside GrpcAdapter: SuperNodes up to 1.39 that were started with --grpc-adapter (WIRE.md 2.9).

Each call is SendReceive with the request of a call of Fleet in a container, and is answered with its response in one.
The handlers are those of Fleet; here is only the wrapping.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

from grpc import StatusCode
from trellis_wire.bulk import introduce
from trellis_wire.pb.edge import fleet_pb2

from trellis_superlink.edges.errors import FLEET_ANSWERS, EdgeError
from trellis_superlink.edges.fleet import Fleet, unexpected
from trellis_superlink.edges.flow import Flow
from trellis_superlink.edges.rpc import Call, Handler, Service
from trellis_superlink.edges.rpcs import ADAPTER

_CONTENT: Final = fleet_pb2.MessageContainer.DESCRIPTOR.fields_by_name["grpc_message_content"].number

METHODS: Final[Mapping[str, str]] = {
    method.input_type.name: method.name for method in fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods
}
"""Which call of Fleet a request belongs to, by the name of its message."""

_RESPONSES: Final[Mapping[str, str]] = {
    method.name: method.output_type.name for method in fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods
}


class Adapter:
    """GrpcAdapter."""

    def __init__(self, fleet: Fleet, flow: Flow) -> None:
        self._fleet = fleet
        self._flow = flow
        # What is pushed is in memory already when its kind is known.
        self._handlers: Mapping[str, Handler] = {**fleet.service().handlers, "PushObject": fleet.take_object}

    def service(self) -> Service:
        return Service(
            ADAPTER,
            "fleet",
            {"SendReceive": self.send_receive},
            answers=FLEET_ANSWERS,
            unexpected=unexpected,
        )

    async def send_receive(self, call: Call) -> None:
        """Serves the call of Fleet that came in the container."""
        credential = call.credential()
        async with contextlib.AsyncExitStack() as room:
            await room.enter_async_context(self._flow.hold(self._fleet.chunk(call, credential), credential.public_key))
            container = await call.request(fleet_pb2.MessageContainer)
            method = METHODS.get(container.grpc_message_name)
            if method is None:
                raise EdgeError(
                    StatusCode.UNIMPLEMENTED, f"Fleet has no call that takes {container.grpc_message_name!r}."
                )
            if method != "PushObject":
                await room.aclose()
            call.open(method, container.grpc_message_content, lambda answer: _contained(method, answer))
            del container
            await self._handlers[method](call)


def _contained(method: str, answer: bytes) -> bytes:
    """The answer in its container, which has one copy of it."""
    container = fleet_pb2.MessageContainer(grpc_message_name=_RESPONSES[method])
    return introduce(container.SerializeToString(), _CONTENT, len(answer)) + answer
