"""Backoff: how long the waits are, and how they end early."""

from __future__ import annotations

import asyncio
import random
from unittest.mock import Mock

from trellis_kit.retry import Backoff


def bounds(backoff: Backoff, rng: Mock, count: int) -> list[float]:
    """The bounds that the next delays are drawn below."""
    found = []
    for _ in range(count):
        backoff.next()
        low, high = rng.uniform.call_args.args
        assert low == 0
        found.append(high)
    return found


def test_bounds_double_up_to_the_cap_and_start_anew() -> None:
    rng = Mock(spec=random.Random)
    backoff = Backoff(initial=0.5, cap=3.0, rng=rng)
    assert bounds(backoff, rng, 5) == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert bounds(backoff, rng, 2) == [0.5, 1.0]


def test_delays_spread_over_the_whole_range() -> None:
    """Many peers that begin at the same moment do not come back at the same moment."""
    delays = sorted(Backoff(initial=1.0, cap=1.0, rng=random.Random(seed)).next() for seed in range(1000))
    assert delays[0] >= 0
    assert delays[-1] <= 1.0
    for tenth in range(10):
        assert 60 <= sum(tenth / 10 <= delay < (tenth + 1) / 10 for delay in delays) <= 140


async def test_a_stop_ends_the_wait() -> None:
    rng = Mock(spec=random.Random)
    rng.uniform.return_value = 3600.0
    stop = asyncio.Event()
    waiting = asyncio.create_task(Backoff(rng=rng).wait(stop))
    stop.set()
    await asyncio.wait_for(waiting, 5)
    rng.uniform.return_value = 0.0
    await asyncio.wait_for(Backoff(rng=rng).wait(asyncio.Event()), 5)  # over by itself
