"""Logs of runs."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from core_world import World
from trellis_superlink.core.errors import NotFound, RunOver
from trellis_superlink.core.logs import LAST_LINES, MAX_TEXT, LogLine
from trellis_superlink.core.principals import NO_ACCOUNT, Principal
from trellis_superlink.core.runs import Outcome


async def test_a_log_is_followed_to_its_end(w: World) -> None:
    who, work, _stay = await w.running()
    got: list[str] = []
    times: list[float] = []

    async def follow() -> None:
        async for batch in w.core.logs.follow(NO_ACCOUNT, work.run.run_id):
            got.extend(entry.text for entry in batch)
            times.extend(entry.at for entry in batch)

    task = asyncio.create_task(follow())
    lines = [LogLine(w.clock(), "INFO", f"{number}\n") for number in range(2500)]
    await w.core.logs.append(who, lines[:3], 1)
    await w.core.logs.append(who, lines[:3], 1)
    await w.core.logs.append(who, lines[3:], 2)
    async with asyncio.timeout(5):
        while len(got) < 2500:
            await asyncio.sleep(0.005)
    assert not task.done()
    await w.core.runs.finish(who, Outcome.COMPLETED, "")
    await asyncio.wait_for(task, 5)
    assert got == [line.text for line in lines]
    assert all(b - a > 1e-6 for a, b in itertools.pairwise(times))
    later = await w.core.logs.read(NO_ACCOUNT, work.run.run_id, after=times[-3])
    assert [entry.text for entry in later] == ["2498\n", "2499\n"]


async def test_batches_are_stored_once_over_a_restart(w: World) -> None:
    who, work, _stay = await w.running()
    await w.core.logs.append(who, [LogLine(0, "OUT", "once\n")], 0)
    await w.reopen()
    who = await w.core.runs.authenticate(work.token)
    await w.core.logs.append(who, [LogLine(0, "OUT", "once\n")], 0)
    await w.core.logs.append(who, [LogLine(1e300, "OUT", "next\n")], 1)
    assert [e.text for e in await w.core.logs.read(NO_ACCOUNT, work.run.run_id)] == ["once\n", "next\n"]


async def test_the_last_lines_come_after_the_end_and_no_others(w: World) -> None:
    who, work, _stay = await w.running()
    await w.core.runs.stop(NO_ACCOUNT, work.run.run_id)
    await w.core.logs.append(who, [LogLine(0, "OUT", "last\n")], 1)
    w.forward(LAST_LINES + 1)
    with pytest.raises(RunOver):
        await w.core.logs.append(who, [LogLine(0, "OUT", "much later\n")], 2)
    assert [e.text for e in await w.core.logs.read(NO_ACCOUNT, work.run.run_id)] == ["last\n"]


async def test_a_giant_line_is_cut_with_a_note(w: World) -> None:
    who, work, _stay = await w.running()
    await w.core.logs.append(who, [LogLine(0, "OUT", "x" * 10_000_000)], 1)
    [entry] = await w.core.logs.read(NO_ACCOUNT, work.run.run_id)
    assert len(entry.text) < MAX_TEXT + 100
    assert "cut here" in entry.text
    with pytest.raises(NotFound):
        await w.core.logs.read(Principal.account("other"), work.run.run_id)
    with pytest.raises(NotFound):
        [_ async for _ in w.core.logs.follow(NO_ACCOUNT, 12345)]
