"""Whole federations over TLS, as processes: our roles by mutual TLS, stock SuperNodes and command lines by the CA."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from example_logs import accuracies
from trellis_testing import TRELLIS, Layout, ProcessFederation, StockCli, StockFlwr

ROUNDS = 3
GOOD = 0.93
OVERRIDES = {"num-server-rounds": ROUNDS}


async def test_own_and_stock_supernodes_train_over_tls(digits: Path, tmp_path: Path) -> None:
    """And the stock command line of 1.33 submits."""
    layout = Layout(supernodes=(TRELLIS, "1.24.0", "1.38.0"), tls=True)
    async with ProcessFederation(layout, tmp_path) as federation:
        assert federation.certs is not None
        cli = StockCli(
            StockFlwr("1.33.0"),
            tmp_path / "cli",
            control=federation.addresses.control,
            http=federation.addresses.http,
            root_certificates=federation.certs.ca,
        )
        async with asyncio.timeout(200):
            run = await cli.run(digits, "--run-config", f"num-server-rounds={ROUNDS} min-sites=3")
        assert run.code == 0, run.output
        assert accuracies(run.output)[-1] >= 0.9  # three parts learn more slowly than two
        assert "without TLS" not in federation.logs()


@pytest.mark.parametrize("isolation", ["process", "subprocess"])
async def test_own_supernodes_train_over_tls(isolation: str, digits: Path, tmp_path: Path) -> None:
    layout = Layout(tls=True, isolation=isolation)  # type: ignore[arg-type]
    async with ProcessFederation(layout, tmp_path) as federation:
        run = await federation.run(digits, {**OVERRIDES, "min-sites": 2})
        async with asyncio.timeout(200):
            result = await run.finished()
        assert result.outcome == "completed", result.reason
        assert accuracies(result.log)[-1] >= GOOD
