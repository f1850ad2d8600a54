"""The operations port: /livez, /readyz and /metrics over plain HTTP, for the platform only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

_log = logging.getLogger(__name__)

Ready = Callable[[], Awaitable[str | None]]


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        """Signals belong to the service, not to this server."""
        from contextlib import nullcontext

        return nullcontext()


class OpsServer:
    """Answers at host:port until stopped; does nothing where the address is None.

    `ready` tells why the service is not ready, or None when it is; `registry` holds the metrics.
    """

    def __init__(self, address: str | None, ready: Ready, registry: CollectorRegistry) -> None:
        self._address = address
        self._ready = ready
        self._registry = registry
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be bound."""
        if self._address is None:
            return
        host, port = self._address.rsplit(":", 1)
        config = uvicorn.Config(
            self._app,
            host=host.strip("[]"),
            port=int(port),
            log_config=None,
            access_log=False,
            lifespan="off",
            interface="asgi3",
        )
        self._server = _Server(config)
        socket = config.bind_socket()
        socket.listen()  # from now on connections wait instead of being refused
        bound = "{}:{}".format(*socket.getsockname()[:2])
        self._task = asyncio.create_task(self._server.serve([socket]), name="ops")
        _log.info("Operations port listens on %s", bound, extra={"listener": "ops", "address": bound})

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
            return 200, CONTENT_TYPE_LATEST.encode(), generate_latest(self._registry)
        return 404, plain, b"There are /livez, /readyz and /metrics.\n"
