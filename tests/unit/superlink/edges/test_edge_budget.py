"""The bound on bytes in memory: first come, first served."""

from __future__ import annotations

import asyncio

from trellis_superlink.edges.budget import Budget


async def test_the_budget_lets_in_by_turn() -> None:
    budget = Budget(100)
    order: list[str] = []
    gate = asyncio.Event()

    async def user(name: str, size: int) -> None:
        async with budget.hold(size):
            order.append(name)
            await gate.wait()

    tasks = [asyncio.create_task(user(name, size)) for name, size in (("a", 60), ("b", 60), ("c", 10), ("d", 1000))]
    await asyncio.sleep(0)
    assert order == ["a"]
    assert budget.held == 60
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert order == ["a", "c"]
    gate.set()
    await asyncio.wait(tasks)
    assert order == ["a", "c", "d"]
    assert budget.held == 0


async def test_several_may_go_away_while_another_leaves() -> None:
    budget = Budget(10)
    gate = asyncio.Event()

    async def user() -> None:
        async with budget.hold(10):
            await gate.wait()

    first, *others = [asyncio.create_task(user()) for _ in range(4)]
    await asyncio.sleep(0)
    for task in (first, *others):
        task.cancel()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert {type(result) for result in results} == {asyncio.CancelledError}
    assert budget.idle
