"""An HTTP server inside a service's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any, Final

import uvicorn

from trellis_kit.lifecycle import Fatal
from trellis_kit.moves import end_when_moved
from trellis_kit.tls import ServerTls, server_context

_log = logging.getLogger(__name__)

_BACKLOG: Final = 2048
_IDLE: Final = 75  # seconds that a connection stays open between two requests; clients' own pools keep less


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        """Signals belong to the service, not to this server."""
        return contextlib.nullcontext()


def listen(address: str, what: str, flag: str) -> socket.socket:
    """A listening socket at host:port. Raises Fatal, naming the flag, for an address that cannot be had."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    try:  # [::] means both families, as for gRPC
        return socket.create_server(
            (host, int(port)), family=family, backlog=_BACKLOG, dualstack_ipv6=six and socket.has_dualstack_ipv6()
        )
    except OSError as error:
        raise Fatal(
            f"Cannot listen on {address} ({what}): {os.strerror(error.errno or 0)}; give another {flag}."
        ) from error


class HttpServer:
    """Serves an ASGI application at host:port; `bound` has the real port from `start` on."""

    def __init__(self, name: str, address: str, app: Any, *, tls: ServerTls | None, flag: str) -> None:
        """`flag` is the one with which the operator chose the address."""
        self.name = name
        self._tls = None if tls is None else server_context(tls)
        self._address = address
        self._app = app
        self._flag = flag
        self.bound = address
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._moves: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and serve. Raises Fatal for an address that is taken."""
        listening = listen(self._address, self.name, self._flag)  # from now on connections wait
        self.bound = f"{self._address.rpartition(':')[0]}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            interface="asgi3",
            http="h11",
            ws="none",
            timeout_keep_alive=_IDLE,
        )
        config.load()
        config.ssl = self._tls
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([listening]), name=self.name)
        self._moves = asyncio.create_task(end_when_moved(self.bound), name=f"{self.name}-moves")
        _log.info(
            "%s listens on %s%s",
            self.name,
            self.bound,
            "" if self._tls else " without TLS",
            extra={"listener": self.name, "address": self.bound},
        )

    async def stop(self, grace: float) -> None:
        """Close the port; requests under way get `grace` seconds."""
        if self._moves is not None:
            self._moves.cancel()
        if self._server is not None and self._task is not None:
            self._server.config.timeout_graceful_shutdown = max(1, round(grace))
            self._server.should_exit = True
            await self._task
