"""All moments at which something is due, in one heap with one timer that sleeps until the next."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable

from trellis_superlink.store.errors import TryAgainLater

_log = logging.getLogger(__name__)

_AGAIN = 1.0  # seconds until what storage could not take is tried again

Action = Callable[[], Awaitable[object] | None]


class Deadlines:
    """Keyed deadlines: a key has one moment at a time. Times are Unix seconds.

    An action that raises TryAgainLater is due again a second later; any other error is logged.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, str]] = []
        self._due: dict[str, tuple[float, int, Action]] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def set(self, key: str, at: float, action: Action) -> None:
        """`action` at `at`, instead of what the key stood for. After `close`, nothing."""
        if self._closed:
            return
        number = next(self._numbers)
        self._due[key] = (at, number, action)
        heapq.heappush(self._heap, (at, number, key))
        self._arm()

    def earlier(self, key: str, at: float, action: Action) -> None:
        """As `set`, unless the key is due earlier than that already."""
        known = self._due.get(key)
        if known is None or at < known[0]:
            self.set(key, at, action)

    def cancel(self, key: str) -> None:
        self._due.pop(key, None)

    async def close(self) -> None:
        """No action starts any more; those under way are awaited."""
        self._closed = True
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap:
            at, number, key = self._heap[0]
            known = self._due.get(key)
            if known is not None and known[1] == number:
                # Wall clocks jump: look again at least each minute.
                delay = min(max(at - self._clock(), 0), 60)
                self._timer = asyncio.get_running_loop().call_later(delay, self._fire)
                return
            heapq.heappop(self._heap)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            _at, number, key = heapq.heappop(self._heap)
            known = self._due.get(key)
            if known is None or known[1] != number:
                continue
            del self._due[key]
            task = asyncio.get_running_loop().create_task(self._act(key, known[2]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._arm()

    async def _act(self, key: str, action: Action) -> None:
        try:
            result = action()
            if result is not None:
                await result
        except TryAgainLater as error:
            if not self._closed:
                _log.warning("storage is not available; trying again", extra={"due": key, "error": str(error)})
                self.earlier(key, self._clock() + _AGAIN, action)
        except Exception:
            _log.exception("a deadline's action failed", extra={"due": key})
