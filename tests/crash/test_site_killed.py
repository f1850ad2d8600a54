"""kill -9 of a site's SuperNode and of its ClientApp process around the replies of a round, on the same state.

The books of the run stay right: what was worked on is worked on again, its context is saved with its reply only.
"""

from pathlib import Path

import pytest
from moments import Reply, Trials
from trellis_testing import TRELLIS


@pytest.mark.timeout(600)
async def test_supernode_around_every_reply_of_its_superlink(tmp_path: Path) -> None:
    async with Trials(tmp_path, (TRELLIS,), "fleet", size=20_000) as trial:
        moments = await trial.moments()
        assert {reply.method for reply in moments} >= {"PullMessages", "PushMessages"}
        await trial.kill_around("supernode-1", moments)


@pytest.mark.timeout(600)
async def test_clientapp_around_the_end_of_its_task(tmp_path: Path) -> None:
    async with Trials(tmp_path, (TRELLIS,), "clientappio") as trial:
        await trial.moments()
        await trial.kill_around("clientapp-1", [Reply("FinishTask", 1)])
