"""Executors of ServerApps: who attends, what they hold, what they are handed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from trellis_superlink.core.parcels import State
from trellis_superlink.core.principals import Principal
from trellis_superlink.core.runs import Run


@dataclass(frozen=True)
class Hello:
    """How an executor introduces itself (ExecutorHello of the interior protocol)."""

    executor_id: str
    slots: int
    version: str = ""
    guest_flwr_version: str = ""
    host: str = ""
    holding: Sequence[str] = ()


@dataclass(frozen=True)
class Work:
    """A run to be hosted; `token` opens this run only."""

    token: str
    run: Run
    state: State | None


@dataclass(frozen=True)
class Stop:
    """The run was stopped: end it now."""

    token: str


@dataclass(frozen=True)
class Drop:
    """The token is not valid (any more): forget the work."""

    token: str


Order = Work | Stop | Drop


class Attendance:
    """One executor's stay. Iterate `orders()`; call the others as its reports come; `leave()` when the stream ends,
    however it ends: what it holds stays its own for `executor_lost_after` seconds."""

    def orders(self) -> AsyncIterator[Order]: ...

    def free_slots(self, count: int) -> None: ...

    def alive(self) -> None: ...

    async def handed_back(self, token: str) -> None:
        """Work given back undone: pending again if the app had not started, else failed."""

    def leave(self) -> None: ...


@dataclass(frozen=True)
class Attending:
    """An executor as the operator sees it."""

    executor_id: str
    host: str
    version: str
    guest_flwr_version: str
    slots: int
    free: int
    holding: Sequence[int]


class Executors:
    async def attend(self, who: Principal, hello: Hello) -> Attendance:
        """Welcomes an executor; one with the same id that was attending before is replaced."""

    def attending(self) -> list[Attending]: ...
