"""A run's log lines on their way to the SuperLink or SuperNode: in order, each batch stored once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc
from trellis_wire.pb.appio import appio_pb2

from trellis_runner.attendance import persist

_log = logging.getLogger(__name__)

MAX_WAITING = 20_000
"""Lines that wait while the other side is away; further ones are counted and left out."""
_BATCH = 1000


class LogPush:
    """`add()` is a guest's sink; `close()` waits until everything has arrived."""

    def __init__(self, stub: Any, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = stub
        self._metadata = metadata
        self._waiting: list[appio_pb2.LogLine] = []
        self._left_out = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._sequence = 0
        self._task = asyncio.create_task(self._push(), name="log-push")

    def add(self, lines: Sequence[appio_pb2.LogLine]) -> None:
        """Take lines."""
        room = MAX_WAITING - len(self._waiting)
        self._waiting.extend(lines[:room])
        self._left_out += len(lines) - len(lines[:room])
        self._wake.set()

    async def _push(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                lines, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                if self._left_out and not self._waiting:
                    note = f"[{self._left_out} lines were left out: they came faster than they could be sent]\n"
                    lines.append(appio_pb2.LogLine(timestamp=lines[-1].timestamp, level="WARNING", text=note))
                    self._left_out = 0
                self._sequence += 1
                request = appio_pb2.PushLogsRequest(lines=lines, sequence=self._sequence)
                await persist(lambda request=request: self._stub.PushLogs(request, metadata=self._metadata))  # type: ignore[misc]
            if self._closing:
                return

    async def close(self, timeout: float | None = None) -> None:
        """Send what is left, for at most `timeout` seconds."""
        self._closing = True
        self._wake.set()
        try:
            await asyncio.wait_for(self._task, timeout)
        except TimeoutError:
            _log.warning("The last log lines of a run could not be delivered in %g s", timeout)
        except grpc.aio.AioRpcError as error:
            _log.warning("The log of a run is not taken any more: %s", error.details())
