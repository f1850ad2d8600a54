"""Bytes of objects in memory over all peers: the room, slow peers, and the memory of a real process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from edge_load import MIB, measure
from trellis_superlink.edges import flow as flow_module
from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.flow import Flow


async def entered(flow: Flow, size: int, leave: asyncio.Event) -> asyncio.Task[None]:
    """A peer that holds its room until `leave`; the task's name tells when it is in."""
    task: asyncio.Task[None]

    async def peer() -> None:
        async with flow.hold(size, object()):
            task.set_name("in")
            await leave.wait()

    task = asyncio.create_task(peer(), name="waiting")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_what_does_not_fit_waits_its_turn() -> None:
    flow = Flow(room=10, slow_room=100, slow_after=60)
    leave = asyncio.Event()
    tasks = [await entered(flow, size, leave) for size in (6, 4, 3, 1)]
    assert [task.get_name() for task in tasks] == ["in", "in", "waiting", "waiting"]
    leave.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)


async def test_an_object_larger_than_the_room_goes_alone() -> None:
    flow = Flow(room=10, slow_room=100, slow_after=60)
    leave = asyncio.Event()
    large = await entered(flow, 50, leave)
    small = await entered(flow, 1, leave)
    assert (large.get_name(), small.get_name()) == ("in", "waiting")
    leave.set()
    await asyncio.wait_for(asyncio.gather(large, small), 5)


async def test_a_peer_on_a_slow_line_makes_room_for_others() -> None:
    flow = Flow(room=10, slow_room=100, slow_after=0.05)
    never, soon = asyncio.Event(), asyncio.Event()
    stalled = await entered(flow, 10, never)
    other = await entered(flow, 10, soon)
    assert other.get_name() == "waiting"
    soon.set()
    await asyncio.wait_for(other, 5)
    never.set()
    await asyncio.wait_for(stalled, 5)
    async with asyncio.timeout(5), flow.hold(10, "somebody"):
        pass


async def test_where_the_slow_have_no_room_either_they_keep_their_place() -> None:
    flow = Flow(room=10, slow_room=15, slow_after=0.05)
    leave = asyncio.Event()
    tasks = [await entered(flow, 10, leave) for _ in range(3)]
    async with asyncio.timeout(5):
        while tasks[1].get_name() != "in":
            await asyncio.sleep(0.01)
    await asyncio.wait(tasks, timeout=0.2)
    assert [task.get_name() for task in tasks] == ["in", "in", "waiting"]
    leave.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)


async def test_whoever_goes_away_gives_back_what_it_held() -> None:
    flow = Flow(room=10, slow_room=100, slow_after=0.05)
    never = asyncio.Event()
    for wait in (0.0, 0.15):
        task = await entered(flow, 10, never)
        waiting = await entered(flow, 10, never)
        await asyncio.wait({task}, timeout=wait)
        task.cancel()
        waiting.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
        async with asyncio.timeout(5), flow.hold(10, "somebody"):
            pass


async def test_a_peer_with_many_calls_waits_for_itself() -> None:
    flow = Flow(room=10, slow_room=100, slow_after=60, share=8)
    never = asyncio.Event()

    async def silent() -> None:
        async with flow.hold(4, "talker"):
            await never.wait()

    calls = [asyncio.create_task(silent()) for _ in range(50)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5), flow.hold(2, "other"):
        pass
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(5), flow.hold(10, "talker"):
        pass


async def test_where_both_rooms_are_full_the_slowest_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "LEAST_SECONDS", 0.2)
    flow = Flow(room=10, slow_room=10, slow_after=0.05)
    never = asyncio.Event()
    stalled = [await entered(flow, 10, never) for _ in range(2)]
    async with asyncio.timeout(5), flow.hold(10, "other"):
        pass
    with pytest.raises(EdgeError, match="too slow"):
        await stalled[0]
    stalled[1].cancel()
    await asyncio.gather(stalled[1], return_exceptions=True)


# grpc has a message in memory three times while it hands it over, so one object of 20 MiB alone takes 62 MiB.
@pytest.mark.parametrize(("old", "bound"), [(False, 64), (True, 62 + 10)], ids=["5 MiB objects", "20 MiB objects"])
async def test_memory_of_the_process_while_models_pass(tmp_path: Path, old: bool, bound: int) -> None:
    rise = await measure(tmp_path, size=60 * MIB, nodes=3, old=old)
    assert rise.peak <= bound
    assert rise.after <= 32
