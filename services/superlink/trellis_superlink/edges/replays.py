"""Signatures that were used before.

A SuperNode signs the time and nothing of the call, but each call anew (Flower 1.20-1.42, ours too): a signature that
comes twice was copied from another call. Such a call is told to come again, which makes a node sign anew; so one that
a proxy on the way repeats does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from grpc import StatusCode
from trellis_wire.identity import CLOCK_TOLERANCE, MAX_AGE, NodeCredential

from trellis_superlink.edges.errors import EdgeError

REMEMBERED: Final = (MAX_AGE + CLOCK_TOLERANCE).total_seconds()
"""Seconds that a signature is good for at most."""
MOST: Final = 500_000
"""Signatures that are remembered at least; where more come within REMEMBERED seconds, the oldest are forgotten."""


class Replayed(EdgeError):
    """The call carries the signature of another."""

    def __init__(self) -> None:
        super().__init__(StatusCode.UNAVAILABLE, "The signature of this call was used before; sign each call anew.")


class Replays:
    """What was seen in this stretch of time and in the one before it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()
        self._began = clock()

    def check(self, credential: NodeCredential) -> None:
        """Replayed."""
        if self._clock() - self._began > REMEMBERED or len(self._now) >= self._most:
            self._now, self._before = set(), self._now
            self._began = self._clock()
        if credential.proof in self._now or credential.proof in self._before:
            raise Replayed
        if credential.proof:
            self._now.add(credential.proof)
