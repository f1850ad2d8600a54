"""An executor's stay at its SuperLink or SuperNode: one stream that is opened again whenever it breaks."""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from trellis_kit.lifecycle import Fatal
from trellis_kit.renewable import Renewable
from trellis_kit.retry import Backoff
from trellis_wire.pb.appio import appio_pb2

_log = logging.getLogger(__name__)

ALIVE_SECONDS: Final = 5.0
JOIN_TOKEN: Final = "trellis-join-token"

# What a call meets when its server ends, is away or is too busy.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# Refusals of an executor that do not pass by themselves; anything else does.
_FINAL = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
)


def is_passing(error: grpc.aio.AioRpcError) -> bool:
    """Whether the other side is away rather than unwilling.

    When a connection breaks while a request stream writes, grpc.aio makes up an INTERNAL of its own with this text
    instead of UNAVAILABLE (seen in 1.85).
    """
    return error.code() in _PASSING or (error.details() or "").startswith("Internal error from Core")


def is_unwanted(error: grpc.aio.AioRpcError) -> bool:
    """Whether the token of a piece of work opens nothing any more: it was stopped, or is somebody else's now."""
    return error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@dataclass
class Attendance:
    """`async for order in attendance.orders()`; the tokens in `holding` are told anew after each reconnect.

    `attend` is the stub's Attend method. Raises Fatal when the other side refuses this executor.
    """

    attend: Callable[..., Any]
    slots: int
    version: str
    guest_flwr_version: str
    join_tokens: Renewable | None = None
    explain: Callable[[], Awaitable[str | None]] | None = None
    """Says what stands against the connection where it is TLS (trellis_kit.channel)."""
    holding: set[str] = field(default_factory=set)
    draining: bool = False
    executor_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _reports: asyncio.Queue[appio_pb2.ExecutorReport] | None = None

    @property
    def connected(self) -> bool:
        """Whether the other side has welcomed this executor, and its stream has not broken since."""
        return self._reports is not None

    @property
    def free_slots(self) -> int:
        return 0 if self.draining else max(0, self.slots - len(self.holding))

    def begin(self, token: str) -> None:
        """Work was taken."""
        self.holding.add(token)
        self._tell_free()

    def end(self, token: str) -> None:
        """Work is done or given up."""
        self.holding.discard(token)
        self._tell_free()

    def drain(self) -> None:
        """Take no more work."""
        self.draining = True
        self._tell_free()

    def hand_back(self, token: str) -> None:
        """Give work back undone."""
        self.holding.discard(token)
        self._report(appio_pb2.ExecutorReport(handed_back=token))

    def _tell_free(self) -> None:
        self._report(appio_pb2.ExecutorReport(free_slots=self.free_slots))

    def _report(self, report: appio_pb2.ExecutorReport) -> None:
        if self._reports is not None:  # between two streams the next hello says it all
            self._reports.put_nowait(report)

    async def flushed(self, timeout: float = 1.0) -> None:
        """Wait until what was reported is on its way (bounded: the other side may be gone)."""
        if self._reports is not None:
            try:
                await asyncio.wait_for(self._reports.join(), timeout)
            except TimeoutError:
                return

    async def orders(self) -> AsyncIterator[appio_pb2.Order]:
        """What the other side wants done, for ever; waits with backoff while it cannot be reached."""
        backoff = Backoff(initial=0.1, cap=2.0)
        away, told = False, None
        while True:
            reports: asyncio.Queue[appio_pb2.ExecutorReport] = asyncio.Queue()
            metadata = () if self.join_tokens is None else ((JOIN_TOKEN, self.join_tokens.shown()),)
            call = self.attend(self._outgoing(reports), metadata=metadata)
            try:
                async for order in call:
                    if order.WhichOneof("order") == "welcome":
                        backoff.reset()
                        away, told = False, None
                        self._reports = reports
                        self._tell_free()
                        _log.info("Connected; waiting for work")
                    else:
                        yield order
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise Fatal(
                        f"What answers there takes no executors ({error.details()}). A SuperLink takes them at its "
                        "ServerAppIO, usually on port 9091, a SuperNode at its ClientAppIO, usually on port 9094."
                    ) from error
                if error.code() in _FINAL:
                    raise Fatal(f"This executor was refused: {error.details()}") from error
                cause = None
                if self.explain is not None and error.code() is grpc.StatusCode.UNAVAILABLE:
                    cause = await self.explain()
                if not away or cause not in (None, told):
                    _log.warning("Not connected, trying again until it works: %s", cause or error.details())
                away, told = True, cause or told
            finally:
                self._reports = None
                call.cancel()
            await backoff.wait()

    async def _outgoing(
        self, reports: asyncio.Queue[appio_pb2.ExecutorReport]
    ) -> AsyncIterator[appio_pb2.ExecutorReport]:
        hello = appio_pb2.ExecutorHello(
            executor_id=self.executor_id,
            slots=self.slots,
            version=self.version,
            guest_flwr_version=self.guest_flwr_version,
            holding=sorted(self.holding),
            host=socket.gethostname(),
        )
        yield appio_pb2.ExecutorReport(hello=hello)
        while True:
            try:
                report = await asyncio.wait_for(reports.get(), ALIVE_SECONDS)
            except TimeoutError:
                yield appio_pb2.ExecutorReport(alive=True)
                continue
            yield report
            reports.task_done()


async def persist(call: Callable[[], Any], *, backoff: Backoff | None = None) -> Any:
    """Make an idempotent call until it is answered, however long its server is away; other errors are raised."""
    backoff = backoff or Backoff(initial=0.05, cap=2.0)
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if not is_passing(error):
                raise
            _log.debug("Trying again: %s", error.details())
        await backoff.wait()


def batches(parcels: Sequence[appio_pb2.Parcel], limit: int) -> list[list[appio_pb2.Parcel]]:
    """The parcels in order, in groups of at most `limit` bytes (a larger one stands alone)."""
    groups: list[list[appio_pb2.Parcel]] = [[]]
    size = 0
    for parcel in parcels:
        length = parcel.ByteSize()
        if groups[-1] and size + length > limit:
            groups.append([])
            size = 0
        groups[-1].append(parcel)
        size += length
    return groups if groups[-1] else []
