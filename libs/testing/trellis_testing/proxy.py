"""A gRPC proxy that records every call between two roles and can stop the world around any reply.

It knows no message: bytes go through as they are, unary calls and streams alike, headers and trailers included. So it
stands between stock programs as well as ours.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
# Set by gRPC itself on the way out; passing them on would say them twice.
_OWN_HEADERS = ("grpc-", "user-agent", "te", "content-type")

Metadata = Sequence[tuple[str, str | bytes]]


class Moment(enum.Enum):
    """When, seen from a reply: it has left the server and not yet reached the client, or it has just been passed on."""

    BEFORE_REPLY = "before the reply"
    AFTER_REPLY = "after the reply"


@dataclass(frozen=True)
class Exchange:
    """One reply that went through: the method's name, and which reply of that method it was (from 1)."""

    method: str
    number: int
    request: bytes  # the last request message of the call so far
    reply: bytes


@dataclass
class GrpcProxy:
    """Listens on `listen` (host:port) and passes everything on to `upstream`.

    `on_reply` is awaited around every reply; what it does (kill the server, say) is done before anything goes on. Where
    it returns False before a reply, the reply is lost: the client gets UNAVAILABLE, as when a connection breaks.
    """

    listen: str
    upstream: str
    on_reply: Callable[[Moment, Exchange], Awaitable[bool | None]] | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    async def start(self) -> None:
        """Bind and serve."""
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((_Everything(self),))
        if self._server.add_insecure_port(self.listen) == 0:
            raise OSError(f"The proxy cannot listen on {self.listen}.")
        self._channel = grpc.aio.insecure_channel(self.upstream, options=_OPTIONS)
        await self._server.start()

    async def stop(self) -> None:
        """End every call."""
        await self._server.stop(0)
        await self._channel.close(None)

    def calls(self, method: str) -> list[Exchange]:
        """The recorded replies of one method, e.g. `PushMessages`."""
        return [exchange for exchange in self.exchanges if exchange.method == method]

    async def serve(
        self, method: str, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """One call."""
        last = b""

        async def passed_on() -> AsyncIterator[bytes]:
            nonlocal last
            async for request in requests:
                last = request
                yield request

        call = self._channel.stream_stream(method, None, None)(
            passed_on(), metadata=_passable(context.invocation_metadata() or ()), timeout=context.time_remaining()
        )
        try:
            await context.send_initial_metadata(_passable(await call.initial_metadata()))
            async for reply in call:
                exchange = self._record(method, last, reply)
                if await self._tell(Moment.BEFORE_REPLY, exchange) is False:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "The connection broke (proxy).")
                yield reply
                await self._tell(Moment.AFTER_REPLY, exchange)
            context.set_trailing_metadata(_passable(await call.trailing_metadata()))
            if (code := await call.code()) != grpc.StatusCode.OK:
                await context.abort(code, await call.details())
        except grpc.aio.AioRpcError as error:
            # grpc.aio's own word for a connection that broke while it wrote; whoever is connected directly sees this.
            broken = (error.details() or "").startswith("Internal error from Core")
            code = grpc.StatusCode.UNAVAILABLE if broken else error.code()
            await context.abort(code, error.details() or "", _passable(error.trailing_metadata() or ()))
        except asyncio.CancelledError:
            call.cancel()
            raise

    def _record(self, method: str, request: bytes, reply: bytes) -> Exchange:
        name = method.rsplit("/", 1)[-1]
        self._counts[name] = self._counts.get(name, 0) + 1
        exchange = Exchange(name, self._counts[name], request, reply)
        self.exchanges.append(exchange)
        return exchange

    async def _tell(self, moment: Moment, exchange: Exchange) -> bool | None:
        return None if self.on_reply is None else await self.on_reply(moment, exchange)


class _Everything(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    def __init__(self, proxy: GrpcProxy) -> None:
        self._proxy = proxy

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        async def handle(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> AsyncIterator[bytes]:
            async for reply in self._proxy.serve(method, requests, context):
                yield reply

        return grpc.stream_stream_rpc_method_handler(handle)


def _passable(metadata: object) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (str(key), value)
        for key, value in metadata  # type: ignore[attr-defined]  # gRPC's Metadata is a mapping of many shapes
        if not str(key).startswith(_OWN_HEADERS)
    )
