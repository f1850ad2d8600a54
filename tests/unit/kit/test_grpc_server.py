"""gRPC servers: health, the ports they take, how they end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from trellis_kit.federation import serves
from trellis_kit.grpc_server import MAX_RECEIVE, GrpcServer
from trellis_kit.lifecycle import Fatal

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Answers with the size of what came, once `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.called = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method != "/test/Size":
            return None

        async def size(request: bytes, _context: object) -> bytes:
            self.called.set()
            await self.gate.wait()
            return str(len(request)).encode()

        return grpc.unary_unary_rpc_method_handler(size)


def serving(address: str = "127.0.0.1:0") -> tuple[GrpcServer, Echo]:
    server, echo = GrpcServer("test", address, None), Echo()
    server.server.add_generic_rpc_handlers((echo,))
    return server, echo


def sizes(channel: grpc.aio.Channel) -> Any:
    method: Any = channel.unary_unary  # the stubs want serializers, which bytes need none of
    return method("/test/Size")


async def test_health_follows_the_life_of_the_server() -> None:
    server, echo = serving()
    await server.start()
    assert await serves(server.bound)
    async with grpc.aio.insecure_channel(server.bound) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        states = aiter(watch)
        assert (await anext(states)).status == _SERVING
        held = asyncio.ensure_future(sizes(channel)(b"abc"))
        await echo.called.wait()
        stopping = asyncio.create_task(server.stop(20))
        assert (await anext(states)).status == _NOT_SERVING
        echo.gate.set()
        assert await held == b"3"  # what was under way may end
        watch.cancel()
        await asyncio.wait_for(stopping, 5)
    assert not await serves(server.bound)


async def test_what_does_not_end_within_the_grace_period_is_ended() -> None:
    server, echo = serving()
    await server.start()
    async with grpc.aio.insecure_channel(server.bound) as channel:
        held = asyncio.ensure_future(sizes(channel)(b""))
        await echo.called.wait()
        await asyncio.wait_for(server.stop(0.1), 5)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await held
        assert ended.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_second_server_on_the_port_is_an_error() -> None:
    server, _ = serving()
    await server.start()
    with pytest.raises(Fatal, match=server.bound):
        serving(server.bound)
    await server.stop(0)


async def test_the_largest_message_is_taken_and_a_larger_one_refused() -> None:
    server, echo = serving()
    echo.gate.set()
    await server.start()
    async with grpc.aio.insecure_channel(server.bound) as channel:
        assert await sizes(channel)(bytes(MAX_RECEIVE)) == str(MAX_RECEIVE).encode()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await sizes(channel)(bytes(MAX_RECEIVE + 1))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await sizes(channel)(b"abc") == b"3"
    await server.stop(0)
