"""What both executors do with orders: begin work, stop it, and end in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from trellis_kit.lifecycle import Stop
from trellis_wire.pb.appio import appio_pb2

from trellis_runner.attendance import Attendance

_log = logging.getLogger(__name__)

_HAND_BACK_SECONDS = 2.0  # of the grace period that are kept for giving work back
_PAUSE_SECONDS = 1.0  # before work that could not be done is given back, or it would return at once


class Hosted(Protocol):
    """One piece of work."""

    token: str

    async def run(self) -> None:
        """Do it to its end; when cancelled, leave nothing running."""

    def stop(self) -> None:
        """Have `run` end soon, whatever the app does."""


class Executor:
    """Takes orders until asked to stop; with `once` until the first piece of work is done."""

    def __init__(
        self, attendance: Attendance, begin: Callable[[appio_pb2.Work], Hosted], stop: Stop, *, once: bool
    ) -> None:
        self._attendance = attendance
        self._begin = begin
        self._stop = stop
        self._once = once
        self._work: dict[str, tuple[Hosted, asyncio.Task[None]]] = {}
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Until the end; work that is not done then is handed back."""
        orders = asyncio.create_task(self._take_orders(), name="orders")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        done = asyncio.create_task(self._done.wait(), name="once")
        try:
            await asyncio.wait({orders, stopping, done}, return_when=asyncio.FIRST_COMPLETED)
            if orders.done():
                orders.result()  # refused for good
            self._attendance.drain()
            await self._drain()
        finally:
            for task in (orders, stopping, done):
                task.cancel()

    async def _take_orders(self) -> None:
        async for order in self._attendance.orders():
            match order.WhichOneof("order"):
                case "work":
                    self._take(order.work)
                case "stop":
                    self._end(order.stop, "stopped")
                case "drop":
                    self._end(order.drop, "not wanted any more")
                case unknown:
                    _log.warning("An order that this executor does not know was left out: %s", unknown)

    def _take(self, work: appio_pb2.Work) -> None:
        if work.token in self._work:
            return  # told twice, over a reconnect
        if self._attendance.draining:
            self._attendance.hand_back(work.token)
            return
        hosted = self._begin(work)
        self._attendance.begin(work.token)
        task = asyncio.create_task(self._do(hosted), name=f"work-{work.run.run_id}")
        self._work[work.token] = (hosted, task)

    async def _do(self, hosted: Hosted) -> None:
        try:
            await hosted.run()
        except Exception:
            _log.exception("Work could not be brought to its end")
            await asyncio.sleep(_PAUSE_SECONDS)
            self._attendance.hand_back(hosted.token)
        finally:
            self._work.pop(hosted.token, None)
            self._attendance.end(hosted.token)
            if self._once:
                self._done.set()

    def _end(self, token: str, why: str) -> None:
        if (found := self._work.get(token)) is not None:
            _log.info("Work is ended: %s", why)
            found[0].stop()

    async def _drain(self) -> None:
        tasks = [task for _, task in self._work.values()]
        if tasks:
            patience = max(0.0, self._stop.remaining() - _HAND_BACK_SECONDS)
            _log.info("Finishing %d piece(s) of work, for %g s at most", len(tasks), patience)
            await asyncio.wait(tasks, timeout=patience)
        left = dict(self._work)
        for token, (_, task) in left.items():
            _log.warning("Work is handed back undone")
            self._attendance.hand_back(token)
            task.cancel()
        await asyncio.gather(*(task for _, task in left.values()), return_exceptions=True)
        await self._attendance.flushed()
