"""The node's membership at the SuperLink: it joins, shows that it lives, asks for work, and joins again if need be."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Final

from trellis_kit import logs
from trellis_kit.lifecycle import Stop
from trellis_kit.retry import Backoff

from trellis_supernode.fleet import HEARTBEAT_INTERVAL, FleetClient, NotLetIn, Refused, RunOver
from trellis_supernode.node import Node
from trellis_supernode.waiting import cancel

_log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 5.0
"""How often a node asks whether the runs it works for still go on: a held pull does not tell."""
IDLE_SECONDS: Final = 300.0
"""The same for runs it only keeps a context of, where the SuperLink does not tell with each pull."""
GOODBYE_SECONDS: Final = 2.0
_QUICK = 0.5  # seconds; a pull that is answered sooner and with nothing was not held


class Session:
    """`run` until asked to stop. `problem` says why the node is not a member, for /readyz."""

    def __init__(self, fleet: FleetClient, node: Node, *, register: bool) -> None:
        self._fleet = fleet
        self._node = node
        self._register = register
        self._trouble = Backoff(initial=1.0, cap=60.0)
        self._joining = asyncio.Lock()
        self._joined = False
        self._refusal: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the node is not online, or None."""
        if self._refusal is not None:
            return self._refusal
        if not self._joined:
            return "The SuperLink does not answer yet."
        return None if self._fleet.reachable else "The SuperLink does not answer."

    async def run(self, stop: Stop) -> None:
        """Joins and works; on `stop`, gives what is under way the grace period. Fatal."""
        joining = asyncio.create_task(self._join(), name="join")
        if not await _first(stop, joining):
            await cancel([joining])
            return
        self._node.outbox.start()
        pulls = asyncio.create_task(self._pulls(), name="pulls")
        others = [
            asyncio.create_task(self._heartbeats(), name="heartbeats"),
            asyncio.create_task(self._watch(), name="watch"),
        ]
        try:
            await _first(stop, pulls, *others)
            await cancel([pulls])
            await self._finish(stop)
            await cancel(others)
            await asyncio.wait_for(self._fleet.leave(), GOODBYE_SECONDS)
        except TimeoutError:
            _log.info("The SuperLink did not hear the goodbye in time")
        finally:
            await cancel([pulls, *others])

    async def _finish(self, stop: Stop) -> None:
        """What is being worked on may end, and replies may leave; the rest is kept for the next start."""
        node = self._node
        node.desk.pause()
        reserve = GOODBYE_SECONDS + 1.0
        while (node.desk.working or len(node.outbox)) and stop.remaining() > reserve:
            node.news.clear()
            try:
                await asyncio.wait_for(node.news.wait(), stop.remaining() - reserve)
            except TimeoutError:
                break
        if node.desk.tasks or len(node.outbox):
            _log.warning(
                "Kept for the next start: %d instruction(s), %d reply(ies)", len(node.desk.tasks), len(node.outbox)
            )

    # ---- membership ----------------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Comes online, however long it takes."""
        async with self._joining:
            self._joined = False
            while True:
                try:
                    node_id = await self._fleet.join(register=self._register)
                    break
                except NotLetIn as refusal:
                    if str(refusal) != self._refusal:
                        _log.error("%s It is tried again until it works.", refusal)
                    self._refusal = str(refusal)
                await self._trouble.wait()
            self._joined, self._refusal = True, None
        with logs.bound(node_id=node_id):
            _log.info("The node is online")

    async def _join_again(self, why: Exception) -> None:
        """The SuperLink answers as if it did not know this node (any more)."""
        if self._joining.locked():  # the other loop noticed first
            async with self._joining:
                return
        _log.warning("Joining again: %s", why)
        self._joined = False
        await self._trouble.wait()
        await self._join()

    async def _heartbeats(self) -> None:
        while True:
            try:
                await self._fleet.heartbeat()
            except (NotLetIn, Refused, RunOver) as error:
                await self._join_again(error)
                continue
            # As Flower's own nodes: early enough that one lost beat does no harm, and never all at once.
            await asyncio.sleep((HEARTBEAT_INTERVAL - 5) * (0.8 + random.uniform(-0.1, 0.1)))

    # ---- work ----------------------------------------------------------------------------------------------

    async def _pulls(self) -> None:
        """One call is open whenever there is room for more work."""
        node = self._node
        empty = Backoff(initial=1.0, cap=3.0)
        while True:
            node.news.clear()
            capacity = node.desk.capacity - node.intake.incomplete
            if capacity <= 0:
                await node.news.wait()
                continue
            began = time.monotonic()
            try:
                answer = await self._fleet.pull(capacity, node.working_on, node.runs.ids)
            except (NotLetIn, Refused, RunOver) as error:
                await self._join_again(error)
                continue
            self._trouble.reset()
            for run_id in answer.trellis_ended_runs:
                node.end_run(run_id, "it is over")
            if node.intake.take(answer):
                empty.reset()
            elif not answer.trellis_ended_runs and time.monotonic() - began < _QUICK:
                # A SuperLink that does not hold calls, is about to stop, or sends what this node cannot use.
                await asyncio.sleep(0.25 + empty.next())

    async def _watch(self) -> None:
        """Finds out about ends that no pull tells of, and takes expired instructions off the desk."""
        node = self._node
        last: dict[int, float] = {}
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            node.desk.assign()
            now = time.monotonic()
            busy = {task.run_id for task in node.desk.tasks.values()}
            for run_id in node.runs.ids:
                last.setdefault(run_id, now)
                if run_id in busy or (not self._fleet.inline and now - last[run_id] > IDLE_SECONDS):
                    last[run_id] = now
                    await self._ask(run_id)
            last = {run_id: at for run_id, at in last.items() if run_id in node.runs.ids}

    async def _ask(self, run_id: int) -> None:
        try:
            await self._fleet.run(run_id)
        except RunOver as error:
            self._node.end_run(run_id, str(error))
        except Refused as error:
            _log.debug("The SuperLink does not say how a run is: %s", error, extra={"run_id": run_id})


async def _first(stop: Stop, *tasks: asyncio.Task[None]) -> bool:
    """Whether a task ended before the stop was asked for; its error is raised."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
        done = [task for task in tasks if task.done()]
        for task in done:
            task.result()
        return bool(done)
    finally:
        stopping.cancel()
