"""A federation driven by plain calls, for tests that are not async."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from trellis_wire.config import Scalar

from trellis_testing.control import RunHandle, RunResult
from trellis_testing.federation import Federation, Peer


class BlockingFederation:
    """Starts what `make` makes and keeps it until `stop`. All calls come from the thread that created it."""

    def __init__(self, make: Callable[[], Federation]) -> None:
        self._runner = asyncio.Runner()

        async def made() -> Federation:
            return make()  # in the loop: its gRPC channels belong to the loop that they were made in

        try:
            self.federation = self._runner.run(made())
        except BaseException:
            self._runner.close()
            raise
        try:
            self._runner.run(self.federation.start())
        except BaseException:
            self.stop()
            raise

    def __getitem__(self, role: str) -> Peer:
        """A role by its name: `superlink`, `serverapp`, `supernode-1`, `clientapp-1`, ..."""
        return self.federation[role]

    def run(self, app: Path | str, config: Mapping[str, Scalar] | None = None, *, timeout: float = 300.0) -> RunResult:
        """Submit the app in this folder, with these values over those of its `[tool.flwr.app.config]`, and wait.

        A run that has not ended after `timeout` seconds is stopped; TimeoutError then.
        """
        return self._runner.run(self._run(Path(app), config, timeout))

    async def _run(self, app: Path, config: Mapping[str, Scalar] | None, timeout: float) -> RunResult:
        run = await self.federation.run(app, config)
        try:
            async with asyncio.timeout(timeout):
                return await run.finished()
        except TimeoutError:
            raise TimeoutError(f"Run {run.run_id} had not ended after {timeout:g} s: {await _ended(run)}") from None

    def logs(self) -> str:
        """The end of every role's log."""
        return self.federation.logs()

    def stop(self) -> None:
        """End every role. pytest shows what they wrote where the test fails, and only there."""
        print(self.logs(), file=sys.stderr)
        try:
            self._runner.run(self.federation.stop())
        finally:
            self._runner.close()


async def _ended(run: RunHandle) -> str:
    status = await run.status()
    await run.stop()
    result = await run.finished()
    return f"it was {status}. Its log:\n{result.log}"
