"""Stock Flower programs, each release in its own environment, on our SuperLink; apps on their flwr in our guests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from example_logs import accuracies
from trellis_testing import TRELLIS, Layout, ProcessFederation, RunResult, StockCli, StockFlwr

ROUNDS = 3
GOOD = 0.93


async def trained(layout: Layout, app: Path, directory: Path, rounds: int = ROUNDS) -> RunResult:
    """The result of one run of the app on such a federation."""
    async with ProcessFederation(layout, directory) as federation:
        run = await federation.run(app, {"num-server-rounds": rounds, "min-sites": len(layout.supernodes)})
        async with asyncio.timeout(200):
            return await run.finished()


def assert_learned(result: RunResult, rounds: int = ROUNDS) -> None:
    """It completed and every round was judged, the last one well."""
    assert result.outcome == "completed", result.reason
    found = accuracies(result.log)
    assert len(found) == rounds + 1
    assert found[-1] >= GOOD


@pytest.mark.parametrize("guest", ["1.24.0", "1.41.0"])
@pytest.mark.parametrize("app", ["digits", "legacy"])
async def test_own_federation_trains(guest: str, app: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    layout = Layout(supernodes=(TRELLIS, TRELLIS), guest=guest)
    assert_learned(await trained(layout, request.getfixturevalue(app), tmp_path))


async def test_subprocess_isolation_trains(digits: Path, tmp_path: Path) -> None:
    layout = Layout(supernodes=(TRELLIS, TRELLIS), isolation="subprocess")
    assert_learned(await trained(layout, digits, tmp_path))


async def test_a_stopped_run_frees_its_executor(digits: Path, tmp_path: Path) -> None:
    async with ProcessFederation(Layout(), tmp_path) as federation:
        run = await federation.run(digits, {"num-server-rounds": 10_000, "min-sites": 2})

        async def working() -> bool:
            return await run.status() == "running"

        await federation.until(working, 60, "the first run is running")
        assert await run.stop()
        async with asyncio.timeout(60):
            assert (await run.finished()).outcome == "stopped"
            # There is one executor with one slot: it takes this run only if it let go of the other.
            again = await federation.run(digits, {"num-server-rounds": ROUNDS, "min-sites": 2})
            assert_learned(await again.finished())


@pytest.mark.parametrize(
    ("release", "app"),
    [("1.20.0", "legacy"), *((release, "digits") for release in ("1.24.0", "1.33.0", "1.38.0", "1.41.0"))],
)
async def test_stock_supernodes_train(release: str, app: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    layout = Layout(supernodes=(release, release), guest="1.24.0")
    assert_learned(await trained(layout, request.getfixturevalue(app), tmp_path))


async def test_own_and_stock_supernodes_in_one_run(digits: Path, tmp_path: Path) -> None:
    layout = Layout(supernodes=(TRELLIS, TRELLIS, "1.24.0", "1.38.0"))
    assert_learned(await trained(layout, digits, tmp_path, rounds=5), rounds=5)  # four parts learn more slowly than two


@pytest.mark.parametrize("release", ["1.24.0", "1.33.0", "1.36.0", "1.41.0"])
async def test_stock_command_lines_drive_it(release: str, digits: Path, tmp_path: Path) -> None:
    async with ProcessFederation(Layout(), tmp_path) as federation:
        at = federation.addresses
        cli = StockCli(StockFlwr(release), tmp_path / "cli", control=at.control, http=at.http)
        run = await cli.run(digits, "--run-config", f"num-server-rounds={ROUNDS} min-sites=2")
        assert run.code == 0, run.output
        assert accuracies(run.output)[-1] >= GOOD
        listed = await cli("ls", cwd=cli.app(digits))
        assert listed.code == 0, listed.output
        assert "completed" in listed.output or "finished" in listed.output
