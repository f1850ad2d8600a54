"""Waits for what others bring about: they look at a condition until it holds, and say what they waited for in vain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], object], what: str | Callable[[], str], timeout: float = 10.0) -> None:
    """Returns when the condition, which does not block, holds. AssertionError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:g} s in vain for {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], T | None], what: str, timeout: float = 60.0, every: float = 0.1) -> T:
    """What the condition returns as soon as that is something; it is asked `every` so many seconds. TimeoutError after
    `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout:g} s in vain until {what}")
        time.sleep(every)
    return found
