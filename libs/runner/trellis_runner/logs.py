"""What a guest prints: from its standard output and error to batches of log lines."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

from trellis_wire.pb.appio import appio_pb2

Sink = Callable[[Sequence[appio_pb2.LogLine]], None]

BATCH_SECONDS = 0.1
MAX_LINE = 64 * 1024
"""Bytes of one line; the rest of a longer one is left out with a note."""
_READ = 64 * 1024
MAX_WAITING = 10_000
_DRAIN_SECONDS = 0.2  # how long after a guest's end a process it left behind may hold its pipes


class LogPump:
    """Reads both streams of one guest and hands whole lines to the sink, at most BATCH_SECONDS late.

    While there is no sink (a guest between two messages) lines wait, up to MAX_WAITING of them.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self._sink = sink
        self._lines: list[appio_pb2.LogLine] = []
        self._timer: asyncio.TimerHandle | None = None
        self._open: dict[int, str] = {}
        self._partial: dict[int, bytearray] = {}
        self._cut: set[int] = set()
        self._closed = asyncio.Event()

    def add(self, level: str) -> int:
        """A new pipe of this level (OUT or ERR); returns the end for the guest, to be closed here once it is passed."""
        mine, theirs = os.pipe()
        os.set_blocking(mine, False)
        self._open[mine] = level
        self._partial[mine] = bytearray()
        asyncio.get_running_loop().add_reader(mine, self._read, mine)
        return theirs

    def _read(self, pipe: int) -> None:
        """A pipe holds 64 KiB, so one read empties it."""
        try:
            data = os.read(pipe, _READ)
        except BlockingIOError:
            return
        if not data:
            self._close(pipe)
            return
        partial = self._partial[pipe]
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._extend(pipe, partial, piece)
            self._line(pipe, bytes(partial) + (b" [... cut]" if pipe in self._cut else b"") + b"\n")
            partial.clear()
            self._cut.discard(pipe)
        self._extend(pipe, partial, rest)

    def _extend(self, pipe: int, partial: bytearray, piece: bytes) -> None:
        room = MAX_LINE - len(partial)
        if len(piece) > room:
            self._cut.add(pipe)
        partial += piece[:room]

    def _line(self, pipe: int, text: bytes) -> None:
        line = appio_pb2.LogLine(timestamp=time.time(), level=self._open[pipe], text=text.decode(errors="replace"))
        self._lines.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_SECONDS, self.flush)

    def _close(self, pipe: int) -> None:
        if self._partial[pipe]:
            self._line(pipe, bytes(self._partial[pipe]) + b"\n")
        asyncio.get_running_loop().remove_reader(pipe)
        os.close(pipe)
        del self._open[pipe], self._partial[pipe]
        if not self._open:
            self._closed.set()

    def redirect(self, sink: Sink | None) -> None:
        """From now on lines go to another sink; what was written before still goes to the old one."""
        self.drain()
        self._sink = sink

    def drain(self) -> None:
        """Hand over what the guest has written so far (a pipe's fill at most: it may be writing still)."""
        for pipe in list(self._open):
            self._read(pipe)
        self.flush()

    def flush(self) -> None:
        """Hand over what has been read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sink is None:
            del self._lines[MAX_WAITING:]
        elif self._lines:
            lines, self._lines = self._lines, []
            self._sink(lines)

    async def finish(self) -> None:
        """After the guest's end: the rest of its output."""
        try:
            await asyncio.wait_for(self._closed.wait(), _DRAIN_SECONDS)
        except TimeoutError:
            for pipe in list(self._open):
                self._close(pipe)
        self.flush()
