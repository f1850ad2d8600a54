"""The HTTP edge: Control for command lines from 1.37 on, Fleet for SuperNodes from 1.40 on (WIRE.md 4).

POST /v1/<surface>/<rpc-in-kebab-case> with a protobuf body. The handlers, rules and errors are those of the gRPC edges:
here is only how a call travels. `/v1` is plain ASGI below FastAPI, so that a body stays on the peer's side of the
connection until its handler takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from grpc import StatusCode
from trellis_kit.http_server import BreakOff
from trellis_wire.identity import NodeCredential, verify_http

from trellis_superlink.core.artifacts import Artifact
from trellis_superlink.core.errors import NotFound
from trellis_superlink.core.principals import SYSTEM
from trellis_superlink.core.service import Core
from trellis_superlink.edges import control, fleet
from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.links import Links
from trellis_superlink.edges.rpc import Call, Dispatcher, Gate, Service
from trellis_superlink.metrics import Metrics

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PROTOBUF: Final = "application/protobuf"
STREAM: Final = "application/flower-protobuf-stream"

PAUSE: Final = 20.0
"""Seconds without a byte after which a body is given up; clients give up a write after 30."""
LEAST_RATE: Final = 16 * 1024
"""Bytes per second that a body comes at on average, once it takes longer than PAUSE."""

LINGER_BYTES: Final = 256 * 1024 * 1024
LINGER_SECONDS: Final = 5.0
"""How much of a body is thrown away, and for how long, so that its sender gets to read why it is refused."""

_ARTIFACT_PART = 1024 * 1024

NO_REST: Final = (
    "A SuperNode with --rest cannot join: its calls do not say who makes them. Start it without --rest, and with "
    "--superlink naming this SuperLink's Fleet port (9092)."
)

STATUSES: Mapping[StatusCode, int] = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.FAILED_PRECONDITION: 412,
    StatusCode.RESOURCE_EXHAUSTED: 413,
    StatusCode.DEADLINE_EXCEEDED: 408,
    StatusCode.INTERNAL: 500,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
}
"""HTTP statuses of gRPC's (Flower 1.33-1.42); anything else is 500."""

CODES: Mapping[int, int] = {1002: 415}
"""Where an error's code says more than its gRPC status (Flower 1.33-1.42)."""


@dataclass(frozen=True)
class Surface:
    """What is served below /v1/<path>. `limit`: bytes of a request. `streams`: rpcs that answer with many messages.

    `absent`: methods of the service that never were here. `unauthenticated` is what peers expect as the detail of a
    401, `challenge` its WWW-Authenticate. `private`: rpcs whose answers nobody may keep.
    """

    path: str
    service: Service
    limit: int
    unauthenticated: str
    challenge: str | None = None
    streams: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    private: frozenset[str] = frozenset()


def fleet_over_http(service: Service) -> Surface:
    """Fleet from 1.40 on: without the life cycle of 1.20-1.22."""
    return Surface(
        "fleet",
        service,
        fleet.MAX_REQUEST,
        unauthenticated="Invalid SuperNode authentication",
        absent=frozenset({"CreateNode", "DeleteNode"}),
    )


def control_over_http(service: Service) -> Surface:
    """Control from 1.37 on."""
    return Surface(
        "control",
        service,
        control.MAX_REQUEST,
        unauthenticated="Not authenticated",
        challenge="Bearer",
        streams=frozenset({"StreamLogs", "StreamRunEvents"}),
        private=frozenset({"GetLoginDetails", "GetAuthTokens", "RefreshAuthTokens", "BeginConnectorOAuth"}),
    )


def application(surfaces: tuple[Surface, ...], metrics: Metrics, core: Core, links: Links, gate: Gate) -> FastAPI:
    """The whole edge."""
    app = FastAPI(title="Trellis SuperLink", openapi_url=None, redirect_slashes=False)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        return Response()

    @app.api_route("/v1/artifacts/{run_id}/{name}", methods=["GET", "HEAD"])
    async def artifact(request: Request, run_id: int, name: str, expires: str = "", signature: str = "") -> Response:
        """What a run left behind, for whoever has the link that `flwr pull` gave."""
        if problem := links.problem(run_id, name, expires, signature):
            return PlainTextResponse(problem + "\n", 403)
        try:
            found = next(one for one in await core.artifacts.list(SYSTEM, run_id) if one.name == name)
        except (StopIteration, NotFound):
            return PlainTextResponse("What the run left behind is kept no longer.\n", 404)
        headers = {
            "content-length": str(found.size),
            "content-disposition": f'attachment; filename="{name}"',
            "cache-control": "private, no-store",
        }
        if request.method == "HEAD":
            return Response(headers=headers, media_type="application/zip")
        return StreamingResponse(_content(core, found), headers=headers, media_type="application/zip")

    @app.post("/api/v0/fleet/{rpc}")
    @app.post("//api/v0/fleet/{rpc}")  # as those from 1.24 on ask
    async def rest(request: Request, rpc: str) -> Response:
        """Where SuperNodes up to 1.32 call that were started with --rest (WIRE.md 2.10): nothing in it proves who
        calls. They end with an error that does not quote the answer, so the log says it, too."""
        peer = "unknown" if request.client is None else f"{request.client.host}:{request.client.port}"
        _log.warning("%s", NO_REST, extra={"surface": "rest", "peer": peer})
        return JSONResponse({"detail": NO_REST}, 501, {"connection": "close"})

    app.mount("/v1", _Edge(surfaces, metrics, gate))
    return app


async def _content(core: Core, artifact: Artifact) -> AsyncIterator[bytes]:
    for start in range(0, artifact.size, _ARTIFACT_PART):
        length = min(_ARTIFACT_PART, artifact.size - start)
        yield bytes(await core.artifacts.read(SYSTEM, artifact.run_id, artifact.name, start, length))


def kebab(method: str) -> str:
    """PullMessages -> pull-messages."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", method).lower()


class _Edge:
    """The ASGI application below /v1."""

    def __init__(self, surfaces: tuple[Surface, ...], metrics: Metrics, gate: Gate) -> None:
        self._dispatcher = Dispatcher(metrics, gate)
        self._routes = {
            f"/v1/{surface.path}/{kebab(method)}": (surface, method)
            for surface in surfaces
            for method in surface.service.methods - surface.absent
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        route = self._routes.get(scope["path"])
        if route is None:
            await _plain(send, 404, "There is no such endpoint.")
        elif scope["method"] != "POST":
            await _plain(send, 405, "Only POST is served here.")
        else:
            surface, method = route
            exchange = HttpExchange(scope, receive, send, surface, method)
            await exchange.during(self._dispatcher.serve(surface.service, method, exchange))


async def _plain(send: Send, status: int, detail: str) -> None:
    """An answer to what is no call at all."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


class HttpExchange:
    """One request and its answer, as the dispatcher sees it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, surface: Surface, method: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._surface = surface
        self._method = method
        self._streams = method in surface.streams
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._announced: list[tuple[bytes, bytes]] = []
        self._taken = asyncio.Event()  # the body is here, so what comes next can only be the peer's leaving
        self._begun = False
        self._ended = False

    # ---- what the dispatcher asks for

    def peer(self) -> str:
        host, port = self._scope.get("client") or ("unknown", 0)
        return f"http:{host}:{port}"

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple(self._headers.items())

    def credential(self) -> NodeCredential:
        return verify_http(self._headers)

    async def read(self) -> bytes | None:
        """The body, once. EdgeError."""
        if self._taken.is_set():
            return None
        kind = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != PROTOBUF:
            raise EdgeError(StatusCode.INVALID_ARGUMENT, f"Unsupported Content-Type. Send {PROTOBUF}.", 1002)
        self._check_size(int(self._headers.get("content-length", "0")))  # the server has looked at its form
        parts: list[bytes] = []
        size, began = 0, time.monotonic()
        while True:
            try:
                async with asyncio.timeout(PAUSE):
                    event = await self._receive()
            except TimeoutError as error:
                raise EdgeError(StatusCode.DEADLINE_EXCEEDED, f"No byte of the body came for {PAUSE:g} s.") from error
            if event["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(event.get("body", b""))
            size += len(parts[-1])
            self._check_size(size)
            if not event.get("more_body", False):
                break
            if (took := time.monotonic() - began) > PAUSE and size < took * LEAST_RATE:
                raise EdgeError(
                    StatusCode.DEADLINE_EXCEEDED, f"The body comes at less than {LEAST_RATE:,} bytes per second."
                )
        self._taken.set()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self._surface.limit:
            raise EdgeError(StatusCode.RESOURCE_EXHAUSTED, f"A request has {self._surface.limit:,} bytes at most.")

    async def write(self, data: bytes) -> None:
        if self._streams:
            await self._begin(200, [(b"content-type", STREAM.encode())])
            await self._body(len(data).to_bytes(4, "big") + data, more=True)
        else:
            await self._answer(200, [(b"content-type", PROTOBUF.encode())], data)

    async def announce(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._announced += [(name.encode(), value.encode()) for name, value in metadata]

    async def refuse(self, service: Service, call: Call, problem: EdgeError) -> None:
        """JSON with the code and text, unless the answer has begun: then the stream breaks off, and the peer comes
        again."""
        if self._begun:
            raise BreakOff from problem
        status = CODES.get(problem.code or 0) or STATUSES.get(problem.status, 500)
        headers = [(b"content-type", b"application/json")]
        told: dict[str, object] = {"detail": problem.text}
        if problem.code is not None:
            told = {"code": problem.code, "detail": problem.text}
        elif status == 401:
            told = {"detail": self._surface.unauthenticated}
        if status == 401 and self._surface.challenge:
            headers.append((b"www-authenticate", self._surface.challenge.encode()))
        if not self._taken.is_set():
            headers.append((b"connection", b"close"))
            await self._let_the_body_pass()
        await self._answer(status, headers, json.dumps(told).encode())

    async def _let_the_body_pass(self) -> None:
        """Most clients send their whole body before they read an answer, and lose it when the connection breaks off
        meanwhile. A peer that sends too much or too slowly does not get that far."""
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0:
                    event = await self._receive()
                    left -= len(event.get("body", b""))
                    if not event.get("more_body", False):
                        return

    # ---- how it goes on the wire

    async def _answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if self._method in self._surface.private:
            headers = [*headers, (b"cache-control", b"no-store"), (b"pragma", b"no-cache")]
        await self._begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self._body(body, more=False)

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if not self._begun:
            self._begun = True
            await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._announced]})

    async def _body(self, data: bytes, *, more: bool) -> None:
        self._ended = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def during(self, work: Coroutine[Any, Any, None]) -> None:
        """Does the work, but no longer than the peer is there."""
        serving = asyncio.create_task(work)
        leaving = asyncio.create_task(self._left())
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not serving.cancelled():
                serving.result()
                if not self._ended:  # the end of a stream
                    await self._begin(200, [(b"content-type", STREAM.encode())])
                    await self._body(b"", more=False)
        finally:
            for task in (serving, leaving):
                task.cancel()
            await asyncio.wait({serving, leaving})

    async def _left(self) -> None:
        await self._taken.wait()
        while (await self._receive())["type"] != "http.disconnect":
            continue
