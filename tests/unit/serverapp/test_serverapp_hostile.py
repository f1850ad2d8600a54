"""ServerApps that get hold of their executor's socket: what they send harms nobody but themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trellis_wire.pb.appio import appio_pb2
from unit.runner.appio_world import Hub, tokens
from unit.runner.runner_world import SERVER

Attend = Callable[..., Any]
Outcome = appio_pb2.FinishRunRequest

FLOOD = """
import gc
wire = next(one for one in gc.get_objects() if type(one).__name__ == "Wire")
calls = next(one for one in gc.get_objects() if type(one).__name__ == "Calls")
numbers = [calls.begin({"op": "replies", "ids": ["a" * 64], "now": False}) for _ in range(3000)]
for number in numbers[1000:]:
    try:
        calls.next(number)
    except RuntimeError as error:
        refused = str(error)
raise ValueError(refused + "x" * 50_000_000)
"""


async def test_calls_without_end_are_refused(hub: Hub, attend: Attend, tmp_path: Path) -> None:
    app = hub.app(tmp_path / "app", SERVER, FLOOD)
    async with attend():
        hub.run("r1", app)
        finish = await hub.finish_of("r1", timeout=60)
    assert finish.outcome == Outcome.FAILED
    assert "has 1000 calls open already" in finish.reason
    assert len(finish.reason) == 4000
    assert tokens(hub.calls, "StreamReplies") <= 1000
