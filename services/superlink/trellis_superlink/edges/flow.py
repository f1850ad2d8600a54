"""How many bytes of objects are in memory at once, over all peers together.

Who wants to send or be sent an object waits for room first; what it sends meanwhile stays on its side of the connection
(HTTP/2 flow control). While grpc hands a message over, it is in memory three times, so the room is smaller than the
memory that may be used. A peer on a slow line must not keep the others waiting: once it has held its room for a moment,
it goes on in a second, larger room, as what it has sent by then is little.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from trellis_superlink import memory
from trellis_superlink.edges.budget import Budget

MIB = 1024 * 1024

ROOM = 16 * MIB
"""Bytes that peers on fast lines move at once; a larger object goes alone."""

SLOW_ROOM = 256 * MIB
"""Bytes that peers on slow lines have under way; where it is full, they keep their place in the first room."""

SLOW_AFTER = 1.0
"""Seconds after which a transfer counts as slow; 5 MiB take that long at 40 Mbit/s."""

LARGE = 4 * MIB
"""Bytes of an object after which freed memory is given back at once."""

SERVER_OPTIONS = (
    # Without these, each call that waits for room may already have had megabytes taken from its connection: grpc widens
    # its window to what the line carries. A message that is being read is not bound by the window.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 64 * 1024),
)


class Flow:
    """`async with flow.hold(size): ...` around what has an object of so many bytes in memory."""

    def __init__(self, room: int = ROOM, slow_room: int = SLOW_ROOM, slow_after: float = SLOW_AFTER) -> None:
        self._room = Budget(room)
        self._slow = Budget(slow_room)
        self._slow_limit = slow_room
        self._slow_after = slow_after

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Waits for room, first come, first served."""
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._room.hold(size))
            loop = asyncio.get_running_loop()
            moves: list[asyncio.Task[None]] = []
            timer = loop.call_later(self._slow_after, lambda: moves.append(loop.create_task(self._move(held, size))))
            try:
                yield
            finally:
                if size >= LARGE:
                    memory.give_back()
                timer.cancel()
                if moves:
                    await asyncio.wait(moves)

    async def _move(self, held: contextlib.AsyncExitStack, size: int) -> None:
        """Changes rooms; without waiting, so that nothing is left half done."""
        if self._slow.held + size > self._slow_limit:
            return
        first = held.pop_all()
        await held.enter_async_context(self._slow.hold(size))
        await first.aclose()
