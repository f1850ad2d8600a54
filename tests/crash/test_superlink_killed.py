"""kill -9 of the SuperLink before and after each reply of a round, one moment a try, on the same database.

Nobody else is restarted, the run completes, and its books say that no reply was lost or counted twice.
"""

from pathlib import Path

import pytest
from moments import Reply, Trials
from trellis_testing import TRELLIS
from trellis_testing.proxy import Moment

# An array of this many numbers is larger than what travels inside a message: its objects go by themselves.
LARGE = 20_000

OF_A_STOCK_ROUND = {"PullMessages", "GetRun", "GetFab", "PullObject", "ConfirmMessageReceived", "PushMessages"} | {
    "PushObject"
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("between", ["fleet", "serverappio"])
async def test_around_every_reply_to_our_own(between: str, tmp_path: Path) -> None:
    async with Trials(tmp_path, (TRELLIS, TRELLIS), between, size=LARGE) as trial:
        moments = await trial.moments()
        assert len(moments) >= 8, moments
        await trial.kill_around("superlink", moments)


@pytest.mark.timeout(600)
async def test_around_each_kind_of_reply_to_a_stock_node(tmp_path: Path) -> None:
    async with Trials(tmp_path, ("1.24.0",), "fleet", rounds=1, size=LARGE) as trial:
        moments = await trial.moments()
        assert {reply.method for reply in moments} == OF_A_STOCK_ROUND
        await trial.kill_around("superlink", first_and_last(moments))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("release", ["1.33.0", "1.38.0"])
async def test_around_replies_that_acknowledge_to_stock_nodes(release: str, tmp_path: Path) -> None:
    async with Trials(tmp_path, (release,), "fleet", rounds=1, size=LARGE) as trial:
        moments = await trial.moments()
        pushes = [reply for reply in moments if reply.method == "PushObject"]
        confirmed, pushed = Reply("ConfirmMessageReceived", 1), Reply("PushMessages", 1)
        await trial.kill_around("superlink", [confirmed, pushed, pushes[-1]], [Moment.BEFORE_REPLY])


def first_and_last(moments: list[Reply]) -> list[Reply]:
    """Of each method the first and the last reply of a round."""
    kept = []
    for method in dict.fromkeys(reply.method for reply in moments):
        numbers = [reply.number for reply in moments if reply.method == method]
        kept += [Reply(method, number) for number in sorted({numbers[0], numbers[-1]})]
    return kept
