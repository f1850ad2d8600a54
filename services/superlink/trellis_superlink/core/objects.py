"""The content-addressed objects that messages are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from trellis_superlink.core.principals import Principal

PART = 1024 * 1024


@dataclass(frozen=True)
class Found:
    """What is known of an object that the caller may see. `available` False: named by a message, content not here."""

    object_id: str
    size: int
    available: bool


@dataclass(frozen=True)
class Part:
    object_id: str
    offset: int
    size: int  # of the whole object
    data: memoryview | bytes


class Receiver:
    """Takes objects in parts as they arrive on one stream; disk work overlaps with receiving."""

    async def part(self, object_id: str, offset: int, size: int, data: bytes) -> None:
        """The parts of an object in order without gaps. BadObject, TryAgainLater, RunOver."""

    async def finish(self) -> list[str]:
        """Waits until everything taken is durable; the ids stored."""

    async def abort(self) -> None:
        """The stream broke: what is incomplete is forgotten (also when finish() was never called)."""


class Budget:
    """Bytes in flight, bounded over all peers: `async with core.objects.budget.hold(size): ...`."""

    def hold(self, size: int) -> AbstractAsyncContextManager[None]: ...


class Objects:
    budget: Budget

    async def store(self, who: Principal, run_id: int, object_id: str, content: bytes) -> bool:
        """One whole object (stock's PushObject). False when no message of the run names it or the hash differs
        (WIRE.md 2.3); BadObject when malformed; RunOver; True once durable, also when it was here already."""

    def receive(self, who: Principal, run_id: int) -> Receiver: ...

    async def find(self, who: Principal, run_id: int, object_id: str) -> Found | None:
        """None when no message that the caller may see has this object. RunOver for a node when the run is over."""

    async def read(self, who: Principal, run_id: int, object_id: str) -> bytes:
        """A whole object (stock's PullObject answers are unary). NotFound also while its content is not here."""

    def stream(self, who: Principal, run_id: int, object_ids: Sequence[str]) -> AsyncIterator[Part]:
        """The objects one after the other in parts of 1 MiB, never a whole object in memory. NotFound."""
