"""Frames between the runner and its guest: a JSON header and raw buffers over a stream socket (see guest.py)."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

from trellis_wire.objects import Buffer

from trellis_runner.room import room

Header = dict[str, Any]

_LENGTH = struct.Struct(">I")
_TOGETHER = 64 * 1024  # bytes up to which a frame is copied together and sent at once
_SOCKET_BUFFER = 4 * 1024 * 1024  # the kernel gives as much of it as it allows (net.core.wmem_max)
_MAX_HEADER = 256 * 1024 * 1024


class GuestGone(Exception):
    """The guest's socket has closed."""


class FrameSocket:
    """One guest's socket. One task receives; several may send."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        self._sock = sock
        self._sending = asyncio.Lock()

    async def receive(self) -> tuple[Header, list[Buffer]]:
        """The next frame. GuestGone when there will be none."""
        try:
            (length,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: Header = json.loads(bytes(await self._exactly(length)))
            return header, [await self._exactly(size) for size in header["buffers"]]
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            # An app got hold of the socket; nothing that comes after can be understood.
            raise GuestGone(f"The guest sent what is no frame: {error}") from error

    async def _exactly(self, size: int) -> Buffer:
        buffer = room(size)
        view = memoryview(buffer)
        loop = asyncio.get_running_loop()
        done = 0
        while done < size:
            try:
                count = await loop.sock_recv_into(self._sock, view[done:])
            except OSError as error:
                raise GuestGone(str(error)) from error
            if count == 0:
                raise GuestGone("The guest's socket has closed.")
            done += count
        return buffer

    async def send(self, header: Header, buffers: Sequence[Buffer] = ()) -> None:
        """Send a frame; large buffers go out as they are. GuestGone when nobody takes it."""
        header = {**header, "buffers": [len(buffer) for buffer in buffers]}
        head = json.dumps(header).encode()
        pieces: list[Buffer] = [_LENGTH.pack(len(head)), head]
        if sum(header["buffers"]) < _TOGETHER:
            pieces = [b"".join([*pieces, *buffers])]
        else:
            pieces += buffers
        loop = asyncio.get_running_loop()
        async with self._sending:
            try:
                for piece in pieces:
                    await loop.sock_sendall(self._sock, piece)
            except OSError as error:
                raise GuestGone(str(error)) from error

    def close(self) -> None:
        """Close the socket; the guest sees the end of its input."""
        self._sock.close()
