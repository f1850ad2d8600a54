"""kill -9 of the processes that host apps: nothing of an app outlives them, and the rounds go on.

Each app has a process in a session of its own besides, which neither a signal to its parent nor to its group reaches.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from books import LEDGER, assert_kept
from trellis_kit.federation import Role
from trellis_kit.processes import descendants
from trellis_testing import TRELLIS, Layout, ProcessFederation, RunHandle
from unit.runner.runner_world import gone

pytestmark = pytest.mark.asyncio(loop_scope="module")

# An executor that left is waited for: 10 s by its SuperNode, 30 s by the SuperLink.
RUN_SECONDS = 60
PAUSE = 3.0  # seconds that the site works on a message; it is killed meanwhile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessFederation]:
    made = ProcessFederation(Layout((TRELLIS,)), tmp_path_factory.mktemp("federation"))
    async with made:
        yield made


async def submit(federation: ProcessFederation, rounds: int, pause: float = 0.0) -> RunHandle:
    return await federation.run(LEDGER, {"rounds": rounds, "sites": 1, "pause": pause, "child": True})


async def completes(run: RunHandle, rounds: int) -> None:
    assert_kept(await asyncio.wait_for(run.finished(), RUN_SECONDS), sites=1, rounds=rounds)


async def working(federation: ProcessFederation, runs: int) -> None:
    """Wait until the site works on a message, for the given time of the test."""

    async def told() -> bool:
        return len(re.findall(r'"message": "working"', federation["supernode-1"].log())) >= runs

    await federation.until(told, 20, "the site works")


async def kill(federation: ProcessFederation, name: str, processes: int) -> None:
    """Kill a role that has so many processes below it, at least: all of them end. Then start it again."""
    role = federation[name]
    assert isinstance(role, Role)
    assert role.pid is not None
    below = descendants(role.pid)
    assert len(below) >= processes, below
    role.kill()
    async with asyncio.timeout(2):
        while left := [pid for pid in below if not gone(pid)]:
            await asyncio.sleep(0.01)
    assert not left
    role.start()


async def test_clientapp_while_its_app_works(federation: ProcessFederation) -> None:
    run = await submit(federation, 2, PAUSE)
    await working(federation, 1)
    await kill(federation, "clientapp-1", 3)  # the interpreter that guests are forked from, the guest, its child
    await completes(run, 2)


async def test_clientapp_between_two_messages(federation: ProcessFederation) -> None:
    await completes(await submit(federation, 1), 1)
    await kill(federation, "clientapp-1", 2)  # the interpreter, the guest that is forked ahead
    await completes(await submit(federation, 1), 1)


async def test_serverapp_while_its_app_waits_for_replies(federation: ProcessFederation) -> None:
    seen = len(re.findall(r'"message": "working"', federation["supernode-1"].log()))
    run = await submit(federation, 2, PAUSE)
    await working(federation, seen + 1)
    await kill(federation, "serverapp", 3)  # the interpreter, the guest, its child
    await completes(await submit(federation, 1), 1)  # by the one that is there now
    result = await asyncio.wait_for(run.finished(), RUN_SECONDS)
    assert result.outcome == "failed"
    assert "was lost" in result.reason


async def test_serverapp_between_two_runs(federation: ProcessFederation) -> None:
    await kill(federation, "serverapp", 1)
    await completes(await submit(federation, 1), 1)
