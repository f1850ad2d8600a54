"""What every part of the core stands on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trellis_superlink.core.deadlines import Deadlines
from trellis_superlink.store.database import Database
from trellis_superlink.store.files import Files
from trellis_superlink.store.signals import Signals

T = TypeVar("T")


@dataclass(frozen=True)
class Ground:
    """Storage, signals and time. `clock` gives Unix seconds."""

    db: Database
    files: Files
    signals: Signals
    deadlines: Deadlines
    clock: Callable[[], float] = time.time
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def discard(self, locations: Sequence[str]) -> None:
        """Deletes files that no row names any more, in the background; what a crash leaves the next start sweeps."""
        if locations:
            task = asyncio.get_running_loop().create_task(self.files.delete(locations))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits work that goes on to its end when the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Waits for the background work."""
        while self._tasks:
            done, _pending = await asyncio.wait(tuple(self._tasks))
            self._tasks.difference_update(done)  # their own callbacks may not have run yet
