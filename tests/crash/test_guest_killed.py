"""Apps that die: killed, by a segmentation fault, by `os._exit`, out of memory; and apps that raise, told from those.

The rounds go on, the books are right, and what happened is known within a second.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
import pytest_asyncio
from books import LEDGER, assert_kept, books, pages
from memory_groups import memory_group
from trellis_kit.federation import Role
from trellis_testing import Layout, ProcessFederation
from trellis_testing.control import RunResult
from trellis_wire.messages import ErrorCode

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN_SECONDS = 60
ROUNDS = 5

RAISED, DIED = ErrorCode.CLIENT_APP_RAISED, ErrorCode.CLIENT_APP_CRASHED
FAULTS = {
    "kill": (DIED, r"was ended by SIGKILL"),
    "segfault": (DIED, r"was ended by SIGSEGV"),
    "exit": (DIED, r"ended by itself with exit code 3"),
    "raise": (RAISED, r"ValueError.*the app is wrong"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessFederation]:
    made = ProcessFederation(Layout(), tmp_path_factory.mktemp("federation"))
    async with made:
        yield made


async def run(federation: ProcessFederation, **config: str | bool | int) -> RunResult:
    return (await finished(federation, **config))[1]


async def finished(federation: ProcessFederation, **config: str | bool | int) -> tuple[int, RunResult]:
    """A run's id and how it ended."""
    handle = await federation.run(LEDGER, {"rounds": ROUNDS, "sites": 2, **config})
    return handle.run_id, await asyncio.wait_for(handle.finished(), RUN_SECONDS)


def times(word: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(rf"\b{word} (\d+\.\d+)", text)]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_site_goes_wrong_in_three_rounds(federation: ProcessFederation, fault: str) -> None:
    code, reason = FAULTS[fault]
    seen = len(times("dying", federation["supernode-1"].log()))
    result = await run(federation, **{"site-fault": fault})
    assert_kept(result, sites=2, rounds=ROUNDS, errors={(2, 0): code, (3, 0): code})
    assert len(re.findall(rf"^failed [\d.]+ .*{reason}", result.log, re.MULTILINE)) == 2, result.log

    async def died() -> list[float]:
        found = times("dying", federation["supernode-1"].log())[seen:]
        return found if len(found) == 3 else []  # the third time after the reply, which counts

    await federation.until(died, 10, "the app has died three times")
    for told, since in zip(times("failed", result.log), await died(), strict=False):
        assert 0 < told - since < 1.0


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_server_goes_wrong_in_a_round(federation: ProcessFederation, fault: str) -> None:
    run_id, result = await finished(federation, **{"server-fault": fault})
    assert result.outcome == "failed"
    assert re.search(FAULTS[fault][1], result.reason), result.reason
    assert books(result.log) == pages(2, 2, {})
    (died,) = times("dying", result.log)
    ended = datetime.fromisoformat((await federation.control.run(run_id)).finished_at).timestamp()
    assert 0 < ended - died < 1.0
    assert_kept(await run(federation), sites=2, rounds=ROUNDS)


async def test_a_site_runs_out_of_memory(federation: ProcessFederation) -> None:
    clientapp = federation["clientapp-1"]
    assert isinstance(clientapp, Role)
    assert clientapp.pid is not None
    with memory_group(clientapp.pid, room=192 << 20) as group:
        result = await run(federation, **{"site-fault": "memory"})
        # Where the kernel ends nobody, memory is refused instead, which the app sees as an exception.
        code = RAISED if group.kills is None else DIED
        assert_kept(result, sites=2, rounds=ROUNDS, errors={(2, 0): code, (3, 0): code})
        assert group.kills is None or group.kills >= 2  # the third time its exit may be cut short
    assert clientapp.running
    assert_kept(await run(federation), sites=2, rounds=ROUNDS)
