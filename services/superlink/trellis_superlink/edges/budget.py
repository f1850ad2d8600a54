"""Bytes in flight, bounded over all peers together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """`async with budget.hold(size): ...` waits until there is room; first come, first served, so nobody starves.

    Something larger than the whole budget is let in alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def held(self) -> int:
        return self._held

    @property
    def idle(self) -> bool:
        """Nobody holds anything or waits."""
        return not self._held and not self._queue

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        size = min(size, self._limit)
        await self._take(size)
        try:
            yield
        finally:
            self._give(size)

    async def _take(self, size: int) -> None:
        if not self._queue and self._held + size <= self._limit:
            self._held += size
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._give(size)  # was let in at the very moment it went away
            elif (size, future) in self._queue:  # else passed over already: several went away at the same moment
                self._queue.remove((size, future))
                self._admit()
            raise

    def _give(self, size: int) -> None:
        self._held -= size
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._held + self._queue[0][0] <= self._limit:
            size, future = self._queue.popleft()
            if future.cancelled():
                continue
            self._held += size
            future.set_result(None)
