"""Which replies have arrived, told to the SuperLink: many in one call, off the way of a round."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

import grpc
from trellis_runner.attendance import persist
from trellis_wire.pb.appio import appio_pb2

_log = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.2
"""From a reply's arrival to its confirmation. Nobody waits for one: it only lets the SuperLink free the objects."""


class Confirmations:
    """`add()` a reply once the app has it; `close()` before the run's end is told."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._metadata = metadata
        self._arrived: list[str] = []
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._tell(), name="confirmations")

    def add(self, message_id: str) -> None:
        self._arrived.append(message_id)
        self._wake.set()

    async def _tell(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), GATHER_SECONDS)
            if self._arrived:
                await self._confirm()
            if self._closing.is_set() and not self._arrived:
                return

    async def _confirm(self) -> None:
        request = appio_pb2.ConfirmReceivedRequest(message_ids=self._arrived)
        self._arrived = []
        try:
            await persist(lambda: self._stub.ConfirmReceived(request, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            _log.warning("The arrival of replies could not be confirmed: %s", error.details())

    async def close(self) -> None:
        """Tell the rest."""
        self._closing.set()
        self._wake.set()
        await self._task

    async def abandon(self) -> None:
        """Tell nothing more: nobody wants to know."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
