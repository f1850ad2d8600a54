"""Flower's edge protocol over HTTP for clients (Control from 1.37 on, Fleet from 1.40 on), in the shape of gRPC
channels: the same stubs speak either way, and every failure is the gRPC status that it means (WIRE.md 4).

`EdgeChannel` finds out which of the two answers at its address, and asks again after the connection was lost: what is
there then may be of another release.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import grpc
import httpx
from grpc import StatusCode

from trellis_kit.channel import Channel
from trellis_kit.probe import Target, speaks_http
from trellis_kit.tls import ClientTls, client_context, stamp

_log = logging.getLogger(__name__)

_PROTOBUF: Final = "application/protobuf"
_STREAM: Final = "application/flower-protobuf-stream"
_CONNECT_SECONDS: Final = 10.0
_LARGEST_FRAME: Final = 2**31 - 1

_CODES: Final[Mapping[int, StatusCode]] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.UNAVAILABLE,
    409: StatusCode.ALREADY_EXISTS,
    412: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    415: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.UNAVAILABLE,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.UNAVAILABLE,
}

Metadata = Iterable[tuple[str, str | bytes]]


def path_of(method: str) -> str:
    """/flwr.proto.Fleet/PullMessages -> /v1/fleet/pull-messages."""
    service, _, name = method.lstrip("/").partition("/")
    kebab = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return f"/v1/{service.rpartition('.')[2].lower()}/{kebab}"


def _headers(metadata: Metadata | None, *, stream: bool) -> dict[str, str]:
    headers = {"content-type": _PROTOBUF, "accept": _STREAM if stream else _PROTOBUF, "x-flwr-client": "cli"}
    if stream:
        headers["accept-encoding"] = "identity"
    for name, value in metadata or ():
        if isinstance(value, bytes):  # binary metadata goes as base64, under the name without -bin
            headers[name.removesuffix("-bin")] = base64.b64encode(value).decode()
        else:
            headers[name] = value
    return headers


def _refusal(status: int, body: bytes) -> grpc.aio.AioRpcError:
    text = body.decode(errors="replace").strip()
    with contextlib.suppress(ValueError):
        told = json.loads(text)
        if isinstance(told, dict) and isinstance(told.get("detail"), str):
            text = " ".join(filter(None, (told["detail"], told.get("extra"))))
    return _error(_CODES.get(status, StatusCode.UNKNOWN), text or f"HTTP status {status}")


def _error(code: StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, None)


def _lost(error: httpx.HTTPError) -> grpc.aio.AioRpcError:
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return _error(StatusCode.DEADLINE_EXCEEDED, "No answer in time.")
    return _error(StatusCode.UNAVAILABLE, str(error) or type(error).__name__)


def _timeout(seconds: float | None) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds or _CONNECT_SECONDS))


def _base(target: Target) -> str:
    return f"{'http' if target.tls is None else 'https'}://{target.address}"


def _trusted(tls: ClientTls | None) -> ssl.SSLContext | bool:
    return True if tls is None else client_context(tls)


class Frames:
    """Cuts a streamed body into its messages: 4 bytes of length, big-endian, and the message."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while len(self._data) >= 4:
            size = int.from_bytes(self._data[:4], "big")
            if size > _LARGEST_FRAME:
                raise _error(StatusCode.INTERNAL, "The stream's frames are not those of Flower.")
            if len(self._data) < 4 + size:
                return
            message = bytes(self._data[4 : 4 + size])
            del self._data[: 4 + size]
            yield message

    def end(self) -> None:
        """UNAVAILABLE where the stream broke off within a message."""
        if self._data:
            raise _error(StatusCode.UNAVAILABLE, "The stream broke off.")


# ---- for services ------------------------------------------------------------------------------------------------


class EdgeChannel(Channel):
    """A channel to a SuperLink of whatever release. Streams of ours (NodeObjects) are there over gRPC only."""

    def __init__(self, target: Target, options: Sequence[tuple[str, object]]) -> None:
        super().__init__(target, options)
        self._over_http: bool | None = None
        self._client: httpx.AsyncClient | None = None
        self._client_of: object = None
        self._asking = asyncio.Lock()

    @property
    def over_http(self) -> bool:
        """Whether HTTP is what answered last."""
        return self._over_http is True

    async def decide(self) -> bool:
        """Whether to speak HTTP; asks the address where that is not known. gRPC where nobody answers."""
        if self._over_http is None:
            async with self._asking:
                if self._over_http is None:
                    self._over_http = await asyncio.to_thread(speaks_http, self._target)
                    if self._over_http is not None:
                        _log.info("%s speaks %s", self._target.address, "HTTP" if self._over_http else "gRPC")
        return self.over_http

    def lost(self) -> None:
        """The connection broke: what answers next may speak otherwise."""
        self._over_http = None

    def http(self) -> httpx.AsyncClient:
        """The HTTP client of the certificates as they are now."""
        tls = self._target.tls
        seen = None if tls is None else stamp(tls.files)
        if self._client is None or seen != self._client_of:
            self._client_of = seen
            self._client = httpx.AsyncClient(
                base_url=_base(self._target), verify=_trusted(tls), proxy=self._target.proxy, trust_env=False
            )
        return self._client

    def unary_unary(self, method: str, *args: Any, **keywords: Any) -> Any:
        over_grpc = super().unary_unary(method, *args, **keywords)
        named = dict(zip(("request_serializer", "response_deserializer"), args, strict=False)) | keywords
        path = path_of(method)

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
            body = named["request_serializer"](request)
            return _EdgeCall(
                self,
                lambda: over_grpc(request, timeout=timeout, metadata=metadata),
                path,
                body,
                metadata,
                timeout,
                named["response_deserializer"],
            )

        return call

    async def close(self, grace: float | None = None) -> None:
        if self._client is not None:
            await self._client.aclose()
        await super().close(grace)


class _EdgeCall:
    """One unary call, as grpc.aio's are: awaited for its answer, then asked for its headers."""

    def __init__(
        self,
        channel: EdgeChannel,
        over_grpc: Callable[[], Any],
        path: str,
        body: bytes,
        metadata: Metadata | None,
        timeout: float | None,
        decode: Callable[[bytes], Any],
    ) -> None:
        self._channel = channel
        self._over_grpc = over_grpc
        self._path, self._body, self._metadata = path, body, metadata
        self._timeout = timeout
        self._decode = decode
        self._initial: Mapping[str, Any] = {}

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    async def initial_metadata(self) -> Mapping[str, Any]:
        return self._initial

    async def _run(self) -> Any:
        try:
            if await self._channel.decide():
                return await self._run_http()
            call = self._over_grpc()
            answer = await call
            self._initial = dict(await call.initial_metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is StatusCode.UNAVAILABLE:
                self._channel.lost()
            raise
        return answer

    async def _run_http(self) -> Any:
        headers = _headers(self._metadata, stream=False)
        try:
            response = await self._channel.http().post(
                self._path, content=self._body, headers=headers, timeout=_timeout(self._timeout)
            )
        except httpx.HTTPError as error:
            raise _lost(error) from error
        if response.status_code != 200:
            raise _refusal(response.status_code, response.content)
        self._initial = response.headers
        return self._decode(response.content)


# ---- for the command line ----------------------------------------------------------------------------------------


class HttpChannel(grpc.Channel):
    """The same without asyncio, and always over HTTP."""

    def __init__(self, target: Target, auth: httpx.Auth | None = None) -> None:
        """`auth` adds to each request what tells who asks."""
        self._client = httpx.Client(
            base_url=_base(target), verify=_trusted(target.tls), proxy=target.proxy, trust_env=False, auth=auth
        )

    def unary_unary(self, method: str, *args: Any, **keywords: Any) -> Any:
        serialize, deserialize = _coders(args, keywords)
        path = path_of(method)

        def call(request: Any, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
            try:
                response = self._client.post(
                    path,
                    content=serialize(request),
                    headers=_headers(metadata, stream=False),
                    timeout=_timeout(timeout),
                )
            except httpx.HTTPError as error:
                raise _lost(error) from error
            if response.status_code != 200:
                raise _refusal(response.status_code, response.content)
            return deserialize(response.content)

        return call

    def unary_stream(self, method: str, *args: Any, **keywords: Any) -> Any:
        serialize, deserialize = _coders(args, keywords)
        path = path_of(method)

        def call(request: Any, timeout: float | None = None, metadata: Metadata | None = None) -> HttpStream:
            prepared = self._client.build_request(
                "POST",
                path,
                content=serialize(request),
                headers=_headers(metadata, stream=True),
                timeout=_timeout(timeout),
            )
            return HttpStream(self._client, prepared, deserialize, timeout)

        return call

    def stream_unary(self, method: str, *args: Any, **keywords: Any) -> Any:
        raise NotImplementedError("HTTP carries no streams of requests.")

    def stream_stream(self, method: str, *args: Any, **keywords: Any) -> Any:
        raise NotImplementedError("HTTP carries no streams of requests.")

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        """There is no state to tell of: a connection is made by the first call."""

    def unsubscribe(self, callback: Any) -> None:
        """See `subscribe`."""

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> HttpChannel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class HttpStream:
    """The answers to one request. Iterate it, or cancel it from another thread."""

    def __init__(
        self, client: httpx.Client, request: httpx.Request, decode: Callable[[bytes], Any], timeout: float | None
    ) -> None:
        self._client = client
        self._request = request
        self._decode = decode
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._response: httpx.Response | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[Any]:
        frames = Frames()
        try:
            self._response = self._client.send(self._request, stream=True)
            if self._cancelled:
                raise _error(StatusCode.CANCELLED, "Cancelled.")
            if self._response.status_code != 200:
                raise _refusal(self._response.status_code, self._response.read())
            for data in self._response.iter_raw():
                yield from map(self._decode, frames.feed(data))
                if self._ends is not None and time.monotonic() > self._ends:
                    raise _error(StatusCode.DEADLINE_EXCEEDED, "The time for this stream is over.")
            frames.end()
        except (httpx.HTTPError, httpx.StreamError) as error:
            if self._cancelled:
                raise _error(StatusCode.CANCELLED, "Cancelled.") from error
            raise (
                _lost(error) if isinstance(error, httpx.HTTPError) else _error(StatusCode.UNAVAILABLE, str(error))
            ) from error
        finally:
            if self._response is not None:
                self._response.close()

    def cancel(self) -> None:
        """Ends the iteration, also one that waits for the next answer; one that waits for the first ends with it."""
        self._cancelled = True
        response = self._response
        if response is not None and not response.is_closed:
            connection = response.extensions["network_stream"].get_extra_info("socket")
            with contextlib.suppress(OSError):  # over already
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # closing it would not wake who reads


def _coders(args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    named = dict(zip(("request_serializer", "response_deserializer"), args, strict=False)) | dict(keywords)
    return named["request_serializer"], named["response_deserializer"]
