"""What the container tests do with federations."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from trellis_testing import Federation, RunHandle, RunResult
from trellis_wire.config import Scalar

APPS = Path(__file__).parent / "apps"

RUN_SECONDS = 150
"""What a run gets, faults and all."""


async def trained(federation: Federation, app: Path, config: Mapping[str, Scalar] | None = None) -> RunResult:
    """How a run ends."""
    async with asyncio.timeout(RUN_SECONDS):
        return await (await federation.run(app, config)).finished()


class Progress:
    """Follows the log of a run of the ledger app: `async with Progress(run) as rounds: await rounds.reach(3)`."""

    def __init__(self, run: RunHandle) -> None:
        self.log = ""
        self._run = run
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Progress:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        async for part in self._run.follow():
            async with self._changed:
                self.log += part
                self._changed.notify_all()

    @property
    def rounds(self) -> int:
        """How many are over."""
        return len(re.findall(r"^books ", self.log, re.MULTILINE))

    async def reach(self, rounds: int) -> None:
        """Wait until so many rounds are over."""
        async with asyncio.timeout(RUN_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.rounds >= rounds)
