"""How many bytes of objects are in memory at once, over all peers together.

Who wants to send or be sent an object waits for room first; what it sends meanwhile stays on its side of the connection
(HTTP/2 flow control). While grpc hands a message over, it is in memory three times, so the room is smaller than the
memory that may be used. A peer on a slow line must not keep the others waiting: once it has held its room for a moment,
it goes on in a second, larger room, as what it has sent by then is little. Nor may a peer that opens many calls and
says nothing in them: each peer has a share, and where both rooms are full, who moves next to nothing is sent away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass

from grpc import StatusCode
from trellis_kit import memory

from trellis_superlink.edges.budget import Budget
from trellis_superlink.edges.errors import EdgeError

MIB = 1024 * 1024

ROOM = 16 * MIB
"""Bytes that peers on fast lines move at once; a larger object goes alone."""

SLOW_ROOM = 256 * MIB
"""Bytes that peers on slow lines have under way; where it is full, they keep their place in the first room."""

SLOW_AFTER = 1.0
"""Seconds after which a transfer of 5 MiB counts as slow (40 Mbit/s); a larger one has so much longer."""

SHARE = 40 * MIB
"""Bytes that one peer has under way; its further calls wait for its own earlier ones. Two objects of 20 MiB."""

LEAST_RATE = 256 * 1024
"""Bytes per second (2 Mbit/s) below which a transfer gives way, where others wait and there is no room."""
LEAST_SECONDS = 10.0
"""Seconds that every transfer has, whatever its rate."""

_USUAL = 5 * MIB  # bytes of an object of Flower 1.23 on

LARGE = 4 * MIB
"""Bytes of an object after which freed memory is given back at once."""

SERVER_OPTIONS = (
    # Without these, each call that waits for room may already have had megabytes taken from its connection: grpc widens
    # its window to what the line carries. A message that is being read is not bound by the window.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 64 * 1024),
)


@dataclass
class _Slow:
    """A transfer in the second room; `ends` sends it away."""

    size: int
    since: float
    ends: asyncio.Timeout
    leaving: bool = False

    def too_slow(self, now: float) -> bool:
        return now - self.since > LEAST_SECONDS + self.size / LEAST_RATE


class Flow:
    """`async with flow.hold(size, peer): ...` around what has an object of so many bytes in memory."""

    def __init__(
        self, room: int = ROOM, slow_room: int = SLOW_ROOM, slow_after: float = SLOW_AFTER, share: int = SHARE
    ) -> None:
        self._room = Budget(room)
        self._slow_limit = slow_room
        self._slow_after = slow_after
        self._slow = Budget(slow_room)
        self._moved: list[_Slow] = []  # the longest there first
        self._share = share
        self._peers: dict[Hashable, Budget] = {}

    @contextlib.asynccontextmanager
    async def hold(self, size: int, peer: Hashable) -> AsyncIterator[None]:
        """Waits for room, first come, first served. EdgeError (UNAVAILABLE) in the body of one that is too slow."""
        loop = asyncio.get_running_loop()
        async with self._share_of(peer, size), contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._room.hold(size))
            if size > ROOM:
                memory.give_back()  # what parts have left, or it would come on top
            since = loop.time()
            try:
                async with asyncio.timeout(None) as ends:
                    slow = _Slow(min(size, self._slow_limit), since, ends)
                    moves: list[asyncio.Task[None]] = []
                    timer = loop.call_later(
                        self._slow_after * max(1.0, size / _USUAL),
                        lambda: moves.append(loop.create_task(self._move(held, slow))),
                    )
                    try:
                        yield
                    finally:
                        if size >= LARGE:
                            memory.give_back()
                        timer.cancel()
                        for move in moves:
                            move.cancel()
                        if moves:
                            await asyncio.wait(moves)
            except TimeoutError as error:
                if not ends.expired():
                    raise
                raise EdgeError(
                    StatusCode.UNAVAILABLE, "The transfer is too slow for others to wait for; try again."
                ) from error

    @contextlib.asynccontextmanager
    async def _share_of(self, peer: Hashable, size: int) -> AsyncIterator[None]:
        share = self._peers.setdefault(peer, Budget(self._share))
        try:
            async with share.hold(size):
                yield
        finally:
            if share.idle and self._peers.get(peer) is share:
                del self._peers[peer]

    async def _move(self, held: contextlib.AsyncExitStack, slow: _Slow) -> None:
        """Changes rooms as soon as it can; the change itself is without waiting, so that nothing is left half done."""
        while (lacking := self._slow.held + slow.size - self._slow_limit) > 0:
            self._send_away(lacking)
            await asyncio.sleep(self._slow_after)
        first = held.pop_all()
        await held.enter_async_context(self._slow.hold(slow.size))
        self._moved.append(slow)
        held.callback(self._moved.remove, slow)
        await first.aclose()

    def _send_away(self, lacking: int) -> None:
        """Makes so much room in the second room, as far as those in it had their time."""
        now = asyncio.get_running_loop().time()
        for slow in self._moved:
            if lacking <= 0:
                return
            if not slow.leaving and not slow.too_slow(now):
                continue
            if not slow.leaving:
                slow.leaving = True
                slow.ends.reschedule(now)
            lacking -= slow.size
