"""gRPC servers with the options that Flower's peers count on, and the standard health service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from trellis_kit import certificates, handshakes
from trellis_kit.lifecycle import Fatal
from trellis_kit.moves import end_when_moved
from trellis_kit.tls import ServerTls, server_credentials

_log = logging.getLogger(__name__)

MAX_RECEIVE: Final = 32 * 1024 * 1024
"""Bytes of the largest message a server takes: the 20 MiB objects of Flower 1.20-1.22 and a 10 MiB FAB fit."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_RECEIVE),
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_concurrent_streams", 5000),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a rival
    ("grpc.server_handshake_timeout_ms", 20_000),  # who connects and says nothing has to go
    # Stock clients ping every 210 s also without calls; a lost peer is noticed within two minutes.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class GrpcServer:
    """One listening port. Add services to `.server`, then `start()`; `bound` is host:port with the real port."""

    def __init__(
        self,
        name: str,
        address: str,
        tls: ServerTls | None,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
        options: Sequence[tuple[str, object]] = (),
    ) -> None:
        self.name = name
        self.server = grpc.aio.server(interceptors=list(interceptors), options=[*_OPTIONS, *options])
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        host, _, port = address.rpartition(":")
        try:
            if tls is None:
                number = self.server.add_insecure_port(address)
            else:
                number = self.server.add_secure_port(address, server_credentials(tls))
        except RuntimeError as error:
            raise Fatal(f"Cannot listen on {address} ({name}); is something else using port {port}?") from error
        if tls is not None:
            handshakes.watch(number, name, partial(certificates.describe_names, tls.certfile))
        self.bound = f"{host}:{number}"
        self._tls = tls is not None
        self._moves: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve, and answer SERVING to health checks."""
        await self.server.start()
        self._moves = asyncio.create_task(end_when_moved(self.bound), name=f"{self.name}-moves")
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        _log.info(
            "%s listens on %s%s",
            self.name,
            self.bound,
            "" if self._tls else " without TLS",
            extra={"listener": self.name, "address": self.bound},
        )

    async def stop(self, grace: float) -> None:
        """Answer NOT_SERVING, refuse new calls and end the running ones after `grace` seconds."""
        if self._moves is not None:
            self._moves.cancel()
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace)
