"""One way of serving every rpc: raw bytes in and out, one error table, one log line, one set of metrics.

Over gRPC all methods, unary ones too, are served as streams of bytes: on the wire there is no difference, and the
handler runs before the request's body has been taken from the connection. So a body can wait (by flow control) until
there is memory for it, and a body that does not parse is answered by us, with INVALID_ARGUMENT and a log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from trellis_kit import logs
from trellis_wire.identity import NodeCredential, verify_grpc

from trellis_superlink.core.errors import TryAgainLater
from trellis_superlink.core.principals import Principal
from trellis_superlink.edges.errors import ANSWERS, Answer, EdgeError, translate
from trellis_superlink.edges.replays import Replays
from trellis_superlink.edges.rpcs import REFUSED_SERVICES, RPCS, refusal
from trellis_superlink.edges.versions import Version, parse
from trellis_superlink.metrics import Metrics

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
T = TypeVar("T")

BODY_SECONDS = 600.0
"""What a call may take to be sent: 20 MiB at 300 kbit/s. Where others wait for its room, flow.py is stricter."""

_MAX_ID = 200  # characters of a name in log and audit lines

PACKAGE_VERSION = "flwr-package-version"
_COMPONENT_NAME = "flwr-component-name"

# Ordinary answers of a working network; everything else that is refused is worth a warning.
_QUIET = frozenset(
    {StatusCode.NOT_FOUND, StatusCode.PERMISSION_DENIED, StatusCode.UNAVAILABLE, StatusCode.UNIMPLEMENTED}
)


class Drain:
    """The end of the service as the held calls see it."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """From now on nothing is held any more."""
        self._begun.set()

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    async def race(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`, or None when the service ends first (`work` is cancelled then)."""
        task = asyncio.create_task(work)
        end = asyncio.create_task(self._begun.wait())
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            end.cancel()
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # taken note of, also where the caller has gone away meanwhile

    async def until(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """The items; ends with UNAVAILABLE when the service does, so that the peer connects again."""

        async def following() -> tuple[T] | tuple[()]:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return ()

        while True:
            item = await self.race(following())
            if item is None:
                raise EdgeError(StatusCode.UNAVAILABLE, "The SuperLink stops; connect again.")
            if not item:
                return
            yield item[0]


class Exchange(Protocol):
    """What one transport does for a call: gRPC or HTTP."""

    def peer(self) -> str:
        """The other end's address, for the log."""

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Headers, named as gRPC names them."""

    def credential(self) -> NodeCredential:
        """The key that the caller has proved to hold. SignatureProblem."""

    async def read(self) -> bytes | None:
        """The next message as it came, None at the end of the stream."""

    async def write(self, data: bytes) -> None:
        """Returns not earlier than the peer has room for it."""

    async def announce(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Headers that go ahead of the first message."""

    async def refuse(self, service: Service, call: Call, problem: EdgeError) -> None:
        """Ends the exchange with an error, in the transport's own words."""


class Call:
    """One rpc under way: who calls, what it sends, what it gets."""

    def __init__(
        self, exchange: Exchange, surface: str, method: str, ids: contextlib.ExitStack, replays: Replays
    ) -> None:
        self._exchange = exchange
        self._replays = replays
        self._credential: NodeCredential | None = None
        self._stack = ids
        self.surface = surface
        self.method = method
        self.peer = exchange.peer()
        self.metadata = exchange.metadata()
        self._headers = dict(self.metadata)
        self.request_id = logs.request_id(self.header(logs.REQUEST_ID))
        self._content: bytes | None = None
        self._wrap: Callable[[bytes], bytes] = lambda answer: answer
        self.received = 0
        self.sent = 0
        self.who: Principal | None = None
        """Who calls, as soon as that is known."""
        self.ids: dict[str, object] = {}
        """What the call is about: the ids in its log lines."""
        self._before_answer: Callable[[], Awaitable[None]] | None = None
        self.note(request_id=self.request_id, peer=self.peer, client=self.client or None)

    def header(self, name: str) -> str:
        """A text header, or "" where the peer sent none."""
        value = self._headers.get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def version(self) -> Version | None:
        """Major and minor of the caller's flwr; None where it does not say (before 1.30)."""
        return parse(self.header(PACKAGE_VERSION))

    @property
    def client(self) -> str:
        """The caller's program and version as it says, for the log."""
        return f"{self.header(_COMPONENT_NAME)} {self.header(PACKAGE_VERSION)}".strip()

    def credential(self) -> NodeCredential:
        """The key of the SuperNode that calls. SignatureProblem, Replayed."""
        if self._credential is None:
            credential = self._exchange.credential()
            self._replays.check(credential)
            self._credential = credential
        return self._credential

    @property
    def account(self) -> Principal:
        """The account that calls, which the guard has made sure of."""
        if self.who is None:
            raise RuntimeError(f"{self.method} was served to nobody in particular.")
        return self.who

    def before_answer(self, work: Callable[[], Awaitable[None]]) -> None:
        """To be done ahead of the first message of the answer, or of its end."""
        self._before_answer = work

    async def answering(self) -> None:
        """Does what is to be done before an answer, once."""
        work, self._before_answer = self._before_answer, None
        if work is not None:
            await work()

    def note(self, **ids: object) -> None:
        """Put ids into each log line of this call from now on; names that somebody sent are cut."""
        ids = {key: value[:_MAX_ID] if isinstance(value, str) else value for key, value in ids.items()}
        self.ids |= ids
        self._stack.enter_context(logs.bound(**ids))

    def open(self, method: str, content: bytes, wrap: Callable[[bytes], bytes]) -> None:
        """The message that was read held another call: from now on this is that call, and its answers are wrapped."""
        self.method = method
        self._content = content
        self._wrap = wrap

    async def read(self) -> bytes | None:
        """The next message as it came, None at the end of the stream."""
        if self._content is not None:
            content, self._content = self._content, None
            return content
        data = await self._exchange.read()
        self.received += 0 if data is None else len(data)
        return data

    async def body(self) -> bytes:
        """The one message of a unary call; UNAVAILABLE where it does not come."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                data = await self.read()
        except TimeoutError as error:
            raise EdgeError(
                StatusCode.UNAVAILABLE, f"{self.method} was not sent within {BODY_SECONDS:g} s; try again."
            ) from error
        if data is None:  # the caller went away, or grpc refused the size and has answered already
            raise EdgeError(
                StatusCode.INVALID_ARGUMENT, f"{self.method} came without a message, or with one too large."
            )
        return data

    async def request(self, kind: type[M]) -> M:
        """The one message of a unary call, decoded."""
        return self.decode(kind, await self.body())

    def decode(self, kind: type[M], data: bytes) -> M:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise malformed(kind.__name__, len(data)) from error

    async def send(self, answer: Message | bytes) -> None:
        """Returns once the bytes are on their way, that is: not earlier than the peer has room for them."""
        data = self._wrap(answer if isinstance(answer, bytes) else answer.SerializeToString())
        await self.answering()
        self.sent += len(data)
        await self._exchange.write(data)

    async def announce(self, *metadata: tuple[str, str]) -> None:
        """Initial metadata."""
        await self._exchange.announce(metadata)


def malformed(kind: str, size: int) -> EdgeError:
    """What a peer is told whose bytes are not the message that the rpc takes."""
    return EdgeError(StatusCode.INVALID_ARGUMENT, f"The {size} bytes sent are no {kind}: malformed or cut off.", 1003)


Handler = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True)
class Service:
    """A service of the protocol: its handlers, and how it answers what goes wrong.

    A method without a handler is refused as rpcs.py says. `unexpected` is the status after an error of ours; `details`
    turns an error into gRPC's details (command lines of some releases want JSON).
    """

    name: str
    label: str
    handlers: Mapping[str, Handler]
    answers: Mapping[type[Exception], Answer] = field(default_factory=lambda: ANSWERS)
    unexpected: Callable[[str], StatusCode] = lambda _method: StatusCode.INTERNAL
    details: Callable[[Call, EdgeError], str] = lambda _call, error: error.text

    @property
    def methods(self) -> frozenset[str]:
        """All that the protocol has, served or not."""
        return frozenset(self.handlers) | RPCS.get(self.name, {}).keys()


def refused_services() -> tuple[Service, ...]:
    """Those of Flower's own app processes and oldest clients, which meet a sentence that names ours."""
    return tuple(Service(name, "stock", {}) for name in REFUSED_SERVICES)


class Gate(Protocol):
    """What stands before the handlers: edges/guard.py."""

    replays: Replays

    async def admit(self, service: Service, call: Call) -> None:
        """Returns for a caller who may go on."""

    async def refused(self, service: Service, call: Call, problem: EdgeError, error: Exception) -> None:
        """Told of each call that went wrong, before it is answered."""


class Dispatcher:
    """Serves calls, whatever transport they came by: one gate, one log line, one error table, one set of metrics."""

    def __init__(self, metrics: Metrics, gate: Gate) -> None:
        self._metrics = metrics
        self._gate = gate

    async def serve(self, service: Service, method: str, exchange: Exchange) -> None:
        """One call from its headers to its end."""
        handler = service.handlers.get(method)
        started = time.monotonic()
        status = StatusCode.OK
        with contextlib.ExitStack() as ids:
            call = Call(exchange, service.label, method, ids, self._gate.replays)
            try:
                if method in service.methods:
                    await self._gate.admit(service, call)
                if handler is None:
                    raise refusal(service.name, method)
                await handler(call)
                await call.answering()
            except asyncio.CancelledError:
                status = StatusCode.CANCELLED
                raise
            except Exception as error:
                problem = translate(error, service.answers)
                if problem is None:
                    problem = EdgeError(
                        service.unexpected(call.method), f"Internal error; the log has it under {call.request_id}."
                    )
                    _log.exception("%s failed", call.method)
                else:
                    quiet = problem.status in _QUIET and not isinstance(error, TryAgainLater)
                    level = logging.INFO if quiet else logging.WARNING
                    _log.log(
                        level,
                        "%s refused: %s",
                        call.method,
                        str(error) or problem.text,
                        extra={"surface": service.label, "status": problem.status.name},
                    )
                status = problem.status
                await self._gate.refused(service, call, problem, error)
                await exchange.refuse(service, call, problem)
            finally:
                seconds = time.monotonic() - started
                name = call.method if handler is not None else "unknown"
                self._metrics.call(service.label, name, status.name, call.received, call.sent)
                _log.debug(
                    "%s",
                    call.method,
                    extra={"surface": service.label, "status": status.name, "seconds": round(seconds, 4)},
                )


class _GrpcExchange:
    """An exchange over gRPC."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.write = context.write
        self.announce = context.send_initial_metadata

    def peer(self) -> str:
        return str(self._context.peer())

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple(self._context.invocation_metadata() or ())

    def credential(self) -> NodeCredential:
        return verify_grpc(self.metadata())

    async def read(self) -> bytes | None:
        data = await self._context.read()
        return data if isinstance(data, bytes) else None  # grpc.aio's EOF object

    async def refuse(self, service: Service, call: Call, problem: EdgeError) -> None:
        await self._context.abort(problem.status, service.details(call, problem))


class Router(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Leads each gRPC call of one or more services to its handler."""

    def __init__(self, services: tuple[Service, ...], metrics: Metrics, gate: Gate) -> None:
        self._services = {service.name: service for service in services}
        self._dispatcher = Dispatcher(metrics, gate)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name, _, method = handler_call_details.method.lstrip("/").partition("/")
        service = self._services.get(name)
        if service is None:
            return None

        async def behaviour(_requests: object, context: Any) -> None:
            await self._dispatcher.serve(service, method, _GrpcExchange(context))

        return grpc.stream_stream_rpc_method_handler(behaviour)
