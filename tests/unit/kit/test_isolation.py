"""Who runs executors: hints where nobody does, and real processes that are kept running."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kit_programs import SECONDS, lives
from pydantic import Field
from trellis_kit import isolation
from trellis_kit.isolation import ProcessIsolation, SubprocessIsolation
from trellis_kit.retry import Backoff
from trellis_kit.settings import Settings
from waits import until


class Service(Settings):
    """Whose executor it is."""

    ops_address: str | None = None
    join_token: str | None = Field(None, json_schema_extra={"secret": True})


# Writes its pid where the tests look; `handler` is what it does with SIGTERM.
EXECUTOR = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, {handler})
with open(sys.argv[1], "a") as file:
    file.write(f"{{os.getpid()}}\\n")
time.sleep(300)
"""


class Executors:
    """The executors that were started, by the pids they wrote down."""

    def __init__(self, folder: Path) -> None:
        self._pids = folder / "pids"
        self.program = sys.executable
        self.handler = "signal.SIG_DFL"

    def argv(self) -> list[str]:
        return [self.program, "-c", EXECUTOR.format(handler=self.handler), str(self._pids)]

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in self._pids.read_text().split()] if self._pids.exists() else []

    async def count(self, count: int) -> int:
        """The pid of the newest, once there have been so many."""
        await until(lambda: len(self.pids) >= count, f"{count} executors were started", SECONDS)
        assert len(self.pids) == count
        return self.pids[-1]


@pytest.fixture
def executors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Executors:
    monkeypatch.setattr(isolation, "Backoff", lambda **_: Backoff(initial=0.05, cap=0.1))
    return Executors(tmp_path)


@pytest.fixture
async def keeper(executors: Executors) -> AsyncIterator[SubprocessIsolation]:
    keeper = SubprocessIsolation(executors.argv, Service)
    yield keeper
    await keeper.stop(5)


async def test_an_executor_that_ends_is_started_again(executors: Executors, keeper: SubprocessIsolation) -> None:
    await keeper.start()
    for life in range(1, 4):
        os.kill(await executors.count(life), signal.SIGKILL)
    last = await executors.count(4)
    await keeper.stop(5)
    assert not lives(last)
    assert len(executors.pids) == 4  # its end was wanted: nobody starts another


async def test_a_program_that_is_away_for_a_moment_is_tried_again(
    executors: Executors, keeper: SubprocessIsolation, caplog: pytest.LogCaptureFixture
) -> None:
    await keeper.start()
    first = await executors.count(1)
    executors.program = "/no/program"  # being upgraded, say
    os.kill(first, signal.SIGKILL)
    await until(lambda: "cannot be started" in caplog.text, "the start has failed", SECONDS)
    executors.program = sys.executable
    assert lives(await executors.count(2))


async def test_one_that_does_not_end_is_killed(executors: Executors, keeper: SubprocessIsolation) -> None:
    executors.handler = "signal.SIG_IGN"
    await keeper.start()
    pid = await executors.count(1)
    await asyncio.wait_for(keeper.stop(0.2), 5)
    assert not lives(pid)


async def test_what_is_set_for_the_service_is_not_set_for_its_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRELLIS_OPS_ADDRESS", "127.0.0.1:8001")
    monkeypatch.setenv("TRELLIS_JOIN_TOKEN_FILE", "/run/secrets/token")
    monkeypatch.setenv("TRELLIS_GUEST_MEMORY", "1GiB")
    seen = tmp_path / "seen"
    code = f"import os; open({str(tmp_path / 'new')!r}, 'w').write(' '.join(os.environ))"
    code += f"; os.rename({str(tmp_path / 'new')!r}, {str(seen)!r})"
    keeper = SubprocessIsolation(lambda: [sys.executable, "-c", code], Service)
    await keeper.start()
    await until(seen.exists, "the executor has run", SECONDS)
    await keeper.stop(5)
    names = seen.read_text().split()
    assert "TRELLIS_GUEST_MEMORY" in names
    assert not {"TRELLIS_OPS_ADDRESS", "TRELLIS_JOIN_TOKEN_FILE"} & set(names)


async def test_a_hint_where_work_waits_and_nobody_comes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    process = ProcessIsolation("Start trellis-clientapp.", absent_after=0.05)
    await process.start()
    process.work_waits(True)
    process.work_waits(True)  # told with every message; said once
    await until(lambda: caplog.records, "the hint", SECONDS)
    assert "Start trellis-clientapp." in caplog.text
    process.work_waits(False)
    process.work_waits(True)
    await until(lambda: len(caplog.records) == 2, "the hint for work that waits anew", SECONDS)
    await process.stop(1)


async def test_no_hint_where_an_executor_came_in_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    in_time, late = ProcessIsolation("in time", absent_after=0.05), ProcessIsolation("late", absent_after=0.1)
    in_time.work_waits(True)
    in_time.work_waits(False)
    late.work_waits(True)
    await until(lambda: "late" in caplog.text, "the later hint", SECONDS)  # so the earlier one would have been there
    assert "in time" not in caplog.text
    stopped = ProcessIsolation("stopped", absent_after=0.05)
    stopped.work_waits(True)
    await stopped.stop(1)
    late.work_waits(False)
    late.work_waits(True)
    await until(lambda: len(caplog.records) == 2, "the later hint", SECONDS)
    assert "stopped" not in caplog.text
