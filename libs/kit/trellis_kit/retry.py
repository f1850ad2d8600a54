"""Waiting between attempts: full jitter, so that a restarted server is not met by everybody at once."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Delays that are drawn from 0 to a bound, which doubles from `initial` to `cap` seconds."""

    def __init__(self, initial: float = 0.1, cap: float = 20.0, rng: random.Random | None = None) -> None:
        self._initial = initial
        self._cap = cap
        self._bound = initial
        self._rng = rng or random.Random()

    def reset(self) -> None:
        """An attempt succeeded."""
        self._bound = self._initial

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        delay = self._rng.uniform(0, self._bound)
        self._bound = min(self._bound * 2, self._cap)
        return delay

    async def wait(self, stop: asyncio.Event | None = None) -> None:
        """Wait for the next delay, or until `stop` is set."""
        delay = self.next()
        if stop is None:
            await asyncio.sleep(delay)
            return
        try:
            await asyncio.wait_for(stop.wait(), delay)
        except TimeoutError:
            return
