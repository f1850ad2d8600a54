"""The operations port: /livez, /readyz and /metrics over plain HTTP, for the platform only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from trellis_kit.lifecycle import Fatal

_log = logging.getLogger(__name__)

Ready = Callable[[], Awaitable[str | None]]
Refresh = Callable[[], Awaitable[None]]

_LAST_ANSWERS: Final = 1  # seconds that requests under way get when the port closes


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        """Signals belong to the service, not to this server."""
        return contextlib.nullcontext()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    try:  # [::] means both families, as for gRPC
        return socket.create_server(
            (host, int(port)), family=family, dualstack_ipv6=six and socket.has_dualstack_ipv6()
        )
    except OSError as error:
        raise Fatal(
            f"Cannot listen on {address} (operations port): {error.strerror}; give another --ops-address."
        ) from error


class OpsServer:
    """Answers at host:port until stopped; does nothing where the address is None.

    `ready` tells why the service is not ready, or None when it is; `registry` holds the metrics, and `refresh` brings
    those up to date that count what is there.
    """

    def __init__(
        self, address: str | None, ready: Ready, registry: CollectorRegistry, refresh: Refresh | None = None
    ) -> None:
        self._address = address
        self._ready = ready
        self._registry = registry
        self._refresh = refresh
        self.bound: str | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and serve; `bound` is host:port with the real port then. Raises Fatal for an address that is taken."""
        if self._address is None:
            return
        listening = _listen(self._address)  # from now on connections wait instead of being refused
        self.bound = f"{self._address.rpartition(':')[0]}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            interface="asgi3",
            timeout_graceful_shutdown=_LAST_ANSWERS,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([listening]), name="ops")
        _log.info("Operations port listens on %s", self.bound, extra={"listener": "ops", "address": self.bound})

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        status, kind, body = await self._answer(scope.get("method", ""), scope.get("path", ""))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})

    async def _answer(self, method: str, path: str) -> tuple[int, bytes, bytes]:
        plain = b"text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            return 405, plain, b"Only GET and HEAD are served here.\n"
        if path == "/livez":
            return 200, plain, b"alive\n"
        if path == "/readyz":
            problem = await self._ready()
            return (200, plain, b"ready\n") if problem is None else (503, plain, f"{problem}\n".encode())
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST.encode(), await self._metrics()
        return 404, plain, b"There are /livez, /readyz and /metrics.\n"

    async def _metrics(self) -> bytes:
        if self._refresh is not None:
            try:
                await self._refresh()
            except Exception as error:  # counters are worth having above all when the database is in trouble
                _log.warning("Some metrics are not up to date: %s", error)
        return generate_latest(self._registry)
