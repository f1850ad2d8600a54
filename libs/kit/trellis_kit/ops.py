"""The operations port: /livez, /readyz and /metrics over plain HTTP, for the platform only."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from trellis_kit.http_server import HttpServer

_log = logging.getLogger(__name__)

Ready = Callable[[], Awaitable[str | None]]
Refresh = Callable[[], Awaitable[None]]

_LAST_ANSWERS: Final = 1  # seconds that requests under way get when the port closes


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
        self._server: HttpServer | None = None

    @property
    def bound(self) -> str | None:
        """host:port with the real port, while it serves."""
        return None if self._server is None else self._server.bound

    async def start(self) -> None:
        """Bind and serve. Raises Fatal for an address that is taken."""
        if self._address is not None:
            self._server = HttpServer("ops", self._address, self._app, tls=None, flag="--ops-address")
            await self._server.start()

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            await self._server.stop(_LAST_ANSWERS)

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
