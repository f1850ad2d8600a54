"""Federations of ours alone: what the tests of stock releases do not show by the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

from example_logs import accuracies
from trellis_testing import TRELLIS, Layout, ProcessFederation, RunResult

ROUNDS = 3
GOOD = 0.93


def assert_learned(result: RunResult) -> None:
    """It completed and every round was judged, the last one well."""
    assert result.outcome == "completed", result.reason
    found = accuracies(result.log)
    assert len(found) == ROUNDS + 1
    assert found[-1] >= GOOD


async def test_subprocess_isolation_trains(digits: Path, tmp_path: Path) -> None:
    layout = Layout(supernodes=(TRELLIS, TRELLIS), isolation="subprocess")
    async with ProcessFederation(layout, tmp_path) as federation, asyncio.timeout(200):
        run = await federation.run(digits, {"num-server-rounds": ROUNDS, "min-sites": 2})
        assert_learned(await run.finished())


async def test_a_stopped_run_frees_its_executor(digits: Path, tmp_path: Path) -> None:
    async with ProcessFederation(Layout(), tmp_path) as federation:
        run = await federation.run(digits, {"num-server-rounds": 10_000, "min-sites": 2})

        async def working() -> bool:
            return await run.status() == "running"

        await federation.until(working, 60, "the first run is running")
        assert await run.stop()
        async with asyncio.timeout(120):
            assert (await run.finished()).outcome == "stopped"
            # There is one executor with one slot: it takes this run only if it let go of the other.
            again = await federation.run(digits, {"num-server-rounds": ROUNDS, "min-sites": 2})
            assert_learned(await again.finished())
