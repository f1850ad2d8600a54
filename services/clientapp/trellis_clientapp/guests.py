"""Guests of ClientApps: a fresh one for each message, forked ahead, or one that is kept for a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, Literal

from trellis_runner.host import GuestHost
from trellis_runner.logs import Sink
from trellis_runner.zygote import Guest, GuestProblem

_log = logging.getLogger(__name__)

EXIT_SECONDS: Final = 5.0
"""What threads and exit handlers of an app get after its reply."""


class Guests:
    """`take()` one, then `give_back()` it after a reply or `drop()` it after anything else.

    `spares` guests are forked ahead, so that a message does not wait for the fork; each serves one message (or run).
    """

    def __init__(self, host: GuestHost, lifetime: Literal["message", "run"], spares: int) -> None:
        self._host = host
        self._lifetime = lifetime
        self._wanted = spares
        self._spares: list[Guest] = []
        self._kept: dict[int, list[Guest]] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def prepare(self) -> None:
        """Fork as many spares as are wanted."""
        try:
            while len(self._spares) < self._wanted:
                self._spares.append(await self._host.fork("client", None))
        except GuestProblem as problem:
            _log.debug("No guest could be forked ahead: %s", problem)  # told with the message that needs one

    async def take(self, run_id: int, sink: Sink) -> Guest:
        """A guest for a message of this run, its output going to `sink`. GuestProblem."""
        for other in [other for other in self._kept if other != run_id]:
            for guest in self._kept.pop(other):
                self._end(guest)
        for ready in (self._kept.get(run_id, []), self._spares):
            while ready:
                guest = ready.pop()
                if not guest.ended.done():
                    guest.pump.redirect(sink)
                    return guest
                self._end(guest)
        return await self._host.fork("client", sink)

    def give_back(self, run_id: int, guest: Guest, header: dict[str, Any]) -> asyncio.Task[Any] | None:
        """After a reply: keep the guest, or end it off the reply's path (the task says when it has ended).

        Learns what the app imported: guests forked before have not, and are replaced.
        """
        if self._host.preimport(header.get("modules", ())):
            while self._spares:
                self._end(self._spares.pop())
        if self._lifetime == "run":
            guest.pump.redirect(None)
            self._kept.setdefault(run_id, []).append(guest)
            return None
        return self._end(guest)

    def _end(self, guest: Guest) -> asyncio.Task[Any]:
        return self.background(self._host.release(guest, patience=EXIT_SECONDS))

    async def drop(self, guest: Guest, *, kill: bool = False) -> int | None:
        """End the guest now; its exit code, None when it had to be killed."""
        return await (self._host.release(guest, patience=0.0) if kill else self._host.release(guest))

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Something that nobody waits for before the next message."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """End those that were kept, and wait for what is under way."""
        for guests in (self._spares, *self._kept.values()):
            for guest in guests:
                self._end(guest)
        self._kept.clear()
        self._spares.clear()
        await asyncio.gather(*self._background, return_exceptions=True)
