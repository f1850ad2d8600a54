"""gRPC servers as every Trellis service runs them: same limits, health service, request ids, metrics and error handling."""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from prometheus_client import Counter, Gauge, Histogram

from trellis_kit import logs
from trellis_kit.lifecycle import EXIT_FAILED, Fatal
from trellis_kit.settings import split_address
from trellis_kit.tls import ServerTls, server_credentials

_log = logging.getLogger(__name__)

REQUEST_ID = "trellis-request-id"

# The largest message that a stock peer sends is one chunk: 20 MiB in 1.20-1.22, 5 MiB later; a FAB is 10 MiB.
MAX_RECEIVE = 32 << 20

CALLS = Counter("trellis_grpc_calls", "gRPC calls answered", ["method", "code"])
OPEN_CALLS = Gauge("trellis_grpc_open_calls", "gRPC calls being answered, held ones included", ["method"])
SECONDS = Histogram(
    "trellis_grpc_seconds",
    "How long unary gRPC calls took, held ones included",
    ["method"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 30),
)

Translate = Callable[[BaseException], tuple[grpc.StatusCode, str] | None]
"""Turns an error of the service's own into the status and the text that the peer gets; None: not one of those."""


def server(
    *,
    translate: Translate = lambda error: None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    max_receive: int = MAX_RECEIVE,
) -> grpc.aio.Server:
    """A server without services or ports; `interceptors` run inside the one that binds ids and answers errors."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", max_receive),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 10_000),
        # A second process on the same port must fail, not share it.
        ("grpc.so_reuseport", 0),
        # Dead peers are noticed; peers that ping often (our own, stock executors) are not sent away.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    return grpc.aio.server(interceptors=[_Frame(translate), *interceptors], options=options)


def listen(target: grpc.aio.Server, address: str, tls: ServerTls | None, *, listener: str) -> int:
    """Bind `address` (before the server starts) and return the port, which the system chose when it was 0.

    Raises Fatal when the address cannot be had.
    """
    host, _ = split_address(address)
    try:
        if tls is None:
            port = target.add_insecure_port(address)
        else:
            port = target.add_secure_port(address, server_credentials(tls))
    except RuntimeError as error:
        raise Fatal(f"Cannot listen on {address} ({listener}): {error}", exit_code=EXIT_FAILED) from error
    if port == 0:
        raise Fatal(f"Cannot listen on {address} ({listener}): it is in use", exit_code=EXIT_FAILED)
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    _log.info(
        "%s listens on %s%s",
        listener,
        shown,
        "" if tls else " without TLS",
        extra={"listener": listener, "address": shown},
    )
    return port


class Health:
    """The standard health service (grpc.health.v1) of a server."""

    def __init__(self) -> None:
        self._servicer = health_aio.HealthServicer()

    def attach(self, target: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, target)

    async def set(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._servicer.set("", status.SERVING if serving else status.NOT_SERVING)


def request_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata for a call to another role that carries the request id bound here on, so that the logs join."""
    request_id = logs.bound_ids().get("request_id")
    return () if request_id is None else ((REQUEST_ID, str(request_id)),)


@dataclass(frozen=True)
class _Call:
    """One call being answered: its ids in the logs, its numbers in the metrics, its errors as statuses."""

    method: str
    translate: Translate
    context: grpc.aio.ServicerContext[Any, Any]

    async def failed(self, error: Exception) -> None:
        known = self.translate(error)
        if known is not None:
            code, text = known
            _log.info("Refused %s from %s: %s", self.method, self.context.peer(), text, extra={"code": code.name})
            await self.context.abort(code, text)
        _log.exception("%s from %s failed", self.method, self.context.peer())
        request_id = logs.bound_ids().get("request_id")
        await self.context.abort(grpc.StatusCode.INTERNAL, f"Internal error; the log has it under request {request_id}")

    def ended(self, started: float, *, unary: bool) -> None:
        OPEN_CALLS.labels(self.method).dec()
        code = self.context.code()
        # grpc.aio reports the numeric code or the enum, and nothing when the handler just returned.
        name = code.name if isinstance(code, grpc.StatusCode) else {0: "OK", None: "OK"}.get(code, str(code))
        CALLS.labels(self.method, name).inc()
        if unary:
            SECONDS.labels(self.method).observe(time.monotonic() - started)


class _Frame(grpc.aio.ServerInterceptor):
    """Around every call: request id, metrics, and one place that answers errors."""

    def __init__(self, translate: Translate) -> None:
        self._translate = translate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith("/grpc.health."):
            return handler  # type: ignore[no-any-return]
        given = next((str(v) for k, v in handler_call_details.invocation_metadata or () if k == REQUEST_ID), None)
        request_id = given[:64] if given else secrets.token_hex(8)
        name = method.rpartition(".")[2]

        async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            call = _Call(name, self._translate, context)
            started = time.monotonic()
            OPEN_CALLS.labels(name).inc()
            with logs.bound(request_id=request_id):
                try:
                    return await inner(request, context)
                except grpc.aio.AbortError:
                    raise
                except Exception as error:
                    await call.failed(error)
                finally:
                    call.ended(started, unary=True)

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            call = _Call(name, self._translate, context)
            started = time.monotonic()
            OPEN_CALLS.labels(name).inc()
            with logs.bound(request_id=request_id):
                try:
                    async for response in inner(request, context):
                        yield response
                except grpc.aio.AbortError:
                    raise
                except Exception as error:
                    await call.failed(error)
                finally:
                    call.ended(started, unary=False)

        inner = handler.unary_unary or handler.stream_unary or handler.unary_stream or handler.stream_stream
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[(handler.request_streaming, handler.response_streaming)]
        return make(  # type: ignore[no-any-return]
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
