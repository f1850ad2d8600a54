"""The operations port: is the process alive, is it ready, what does it count (plain HTTP, for the platform only)."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from trellis_kit.lifecycle import EXIT_FAILED, Fatal
from trellis_kit.settings import split_address

if TYPE_CHECKING:
    import uvicorn

_log = logging.getLogger(__name__)

Ready = Callable[[], Awaitable[str | None]]
"""None when the service can do its work, else a sentence that says what is missing."""

# A readiness check that hangs is an answer too.
_READY_SECONDS = 5.0


class OpsServer:
    """Serves /livez, /readyz and /metrics on `address`; does nothing where that is None."""

    def __init__(self, address: str | None, ready: Ready, *, registry: CollectorRegistry = REGISTRY) -> None:
        self._address = address
        self._ready = ready
        self._registry = registry
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port: int | None = None

    async def start(self) -> None:
        """Bind and serve; Fatal when the address cannot be had."""
        if self._address is None:
            return
        import uvicorn  # only where the port is open: it costs 50 ms and 10 MB

        class QuietServer(uvicorn.Server):
            """Leaves the process's signals to the service."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        host, port = split_address(self._address)
        try:
            listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise Fatal(f"Cannot listen on {self._address} (ops): {error.strerror}", exit_code=EXIT_FAILED) from error
        self.port = int(listening.getsockname()[1])
        config = uvicorn.Config(
            self._answer, lifespan="off", log_config=None, access_log=False, limit_concurrency=64, server_header=False
        )
        self._server = QuietServer(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]), name="ops")
        shown = f"{host}:{self.port}"
        _log.info("ops listens on %s", shown, extra={"listener": "ops", "address": shown})

    async def stop(self) -> None:
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        await self._task
        self._server = self._task = None

    async def _answer(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        status, kind, body = await self._respond(scope["method"], scope["path"])
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _respond(self, method: str, path: str) -> tuple[int, str, bytes]:
        text = "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            return 405, text, b"GET only\n"
        if path == "/livez":
            return 200, text, b"ok\n"
        if path == "/readyz":
            problem = await self._check()
            return (200, text, b"ok\n") if problem is None else (503, text, f"{problem}\n".encode())
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        return 404, text, b"/livez, /readyz, /metrics\n"

    async def _check(self) -> str | None:
        try:
            return await asyncio.wait_for(self._ready(), _READY_SECONDS)
        except TimeoutError:
            return f"the check did not end within {_READY_SECONDS:g} s"
        except Exception as error:
            _log.exception("The readiness check failed")
            return f"the check failed: {type(error).__name__}"
