"""Guests of ClientApps: a fresh one for each message, or one that is kept for a run."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from trellis_runner.host import Guest, GuestHost
from trellis_runner.logs import Sink


class Guests:
    """`take()` one, then `give_back()` it after a reply or `drop()` it after anything else."""

    def __init__(self, host: GuestHost, lifetime: Literal["message", "run"]) -> None:
        self._host = host
        self._lifetime = lifetime
        self._kept: dict[int, list[Guest]] = {}
        self._ending: set[asyncio.Task[int | None]] = set()

    async def take(self, run_id: int, sink: Sink) -> Guest:
        """A guest for a message of this run, its output going to `sink`. GuestProblem."""
        for other in [other for other in self._kept if other != run_id]:
            for guest in self._kept.pop(other):
                self._end(guest)
        kept = self._kept.get(run_id)
        if kept:
            guest = kept.pop()
            if not guest.ended.done():
                guest.pump.redirect(sink)
                return guest
            self._end(guest)
        return await self._host.fork("client", sink)

    def give_back(self, run_id: int, guest: Guest, header: dict[str, Any]) -> None:
        """After a reply: keep the guest or end it, off the reply's path; learn what the app imported."""
        self._host.preimport(header.get("modules", ()))
        if self._lifetime == "run":
            self._kept.setdefault(run_id, []).append(guest)
        else:
            self._end(guest)

    def _end(self, guest: Guest) -> None:
        task = asyncio.create_task(self._host.release(guest))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def drop(self, guest: Guest, *, kill: bool = False) -> int | None:
        """End the guest now; its exit code."""
        return await self._host.release(guest, kill=kill)

    async def close(self) -> None:
        """End those that were kept."""
        for guests in self._kept.values():
            for guest in guests:
                self._end(guest)
        self._kept.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)
