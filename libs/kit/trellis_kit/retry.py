"""Trying again: exponential backoff with full jitter, so that many peers do not come back at the same moment."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Backoff:
    """Waits of U(0, min(cap, initial * 2^n)) seconds for the n-th failure in a row."""

    def __init__(self, initial: float = 0.1, cap: float = 20.0, rng: random.Random | None = None) -> None:
        self._initial = initial
        self._cap = cap
        self._rng = random.Random() if rng is None else rng
        self.failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        # 2**64 is beyond every cap; more would overflow a float in a service that fails for days.
        ceiling = min(self._cap, self._initial * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return self._rng.uniform(0.0, ceiling)

    def reset(self) -> None:
        """Called after a success."""
        self.failures = 0

    async def sleep(self) -> None:
        await asyncio.sleep(self.next())


async def keep_trying(
    action: Callable[[], Awaitable[T]],
    *,
    retry_on: Callable[[Exception], bool],
    what: str,
    backoff: Backoff | None = None,
) -> T:
    """The result of `action`, tried for ever while it fails in a way that `retry_on` says may pass.

    Logs the first failure and the recovery, not each attempt: `what` says what is being tried, "reach the SuperLink".
    Ends by cancellation; other failures are raised.
    """
    waits = Backoff() if backoff is None else backoff
    while True:
        try:
            result = await action()
        except Exception as error:
            if not retry_on(error):
                raise
            if waits.failures == 0:
                _log.warning("Cannot %s yet, trying on: %s", what, _brief(error))
            await waits.sleep()
        else:
            if waits.failures:
                _log.info("Could %s after %d attempts", what, waits.failures + 1)
            waits.reset()
            return result


def _brief(error: Exception) -> str:
    details = getattr(error, "details", None)  # grpc's errors print as a page
    if callable(details):
        code = getattr(error, "code", lambda: "")()
        return f"{getattr(code, 'name', code)} {details()}".strip()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
