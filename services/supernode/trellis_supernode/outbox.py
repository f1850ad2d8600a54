"""Replies on their way out: each is offered to the SuperLink until it has all of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final, Protocol

from trellis_kit import logs
from trellis_kit.retry import Backoff
from trellis_wire.bulk import Part
from trellis_wire.objects import Tree
from trellis_wire.pb.edge import fleet_pb2, message_pb2

from trellis_supernode.fleet import PART, FleetClient, Interrupted, Refused, RunOver
from trellis_supernode.ledger import Ledger, ReplyRow
from trellis_supernode.metrics import Metrics
from trellis_supernode.objects import NotComing, ObjectStore
from trellis_supernode.waiting import cancel, gather

_log = logging.getLogger(__name__)

INLINE_ANSWER: Final = 1024 * 1024
"""Bytes of objects that travel along with one reply at most."""
PARALLEL: Final = 3
"""Objects that this node pushes at once to a SuperLink of stock, over all its runs."""
PATIENCE: Final = 30.0
"""Seconds that a stream to the SuperLink waits for an object to come from the executor."""
_TRIES: Final = 8  # for a reply that the SuperLink answers with an error which may pass


class Owner(Protocol):
    """Whose outbox it is."""

    async def delivered(self, reply: ReplyRow) -> None:
        """The reply has left the outbox: the SuperLink has it, or never wants it."""

    def end_run(self, run_id: int, why: str) -> None:
        """The run is over."""


class Outbox:
    """Holds a reply until it is delivered. A reply delivered twice is one: its id is its hash."""

    def __init__(self, fleet: FleetClient, ledger: Ledger, store: ObjectStore, metrics: Metrics, owner: Owner) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._store = store
        self._metrics = metrics
        self._owner = owner
        self._gate = asyncio.Semaphore(PARALLEL)
        self._started = False
        self._replies: dict[str, tuple[ReplyRow, Tree]] = {}
        self._delivering: dict[str, asyncio.Task[None]] = {}
        self._ahead: dict[str, tuple[ReplyRow, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._replies)

    @property
    def instruction_ids(self) -> list[str]:
        """The instructions whose replies are here."""
        return [row.instruction_id for row, _ in self._replies.values()]

    def trees(self, run_id: int) -> list[Tree]:
        """The trees of a run that are needed here."""
        return [tree for row, tree in self._replies.values() if row.run_id == run_id]

    def add(self, reply: ReplyRow, tree: Tree | None = None) -> None:
        """A reply that the ledger keeps."""
        tree = tree or Tree.from_edge(message_pb2.ObjectTree.FromString(reply.tree))
        self._replies[reply.message_id] = (reply, tree)
        if self._started:
            self._deliver(reply, tree)

    def send_ahead(self, reply: ReplyRow, tree: Tree) -> None:
        """The objects of a reply that is still on its way here go on to the SuperLink as they come.

        Its own object stays: without that the SuperLink has no reply, so it cannot have one that is not kept here.
        """
        if not self._started or not self._fleet.streams or reply.message_id in self._ahead:
            return
        with logs.bound(run_id=reply.run_id, message_id=reply.message_id):
            task = asyncio.create_task(self._send_ahead(reply, tree))
        self._ahead[reply.message_id] = reply, task
        task.add_done_callback(partial(self._went_ahead, reply.message_id))

    def _went_ahead(self, message_id: str, task: asyncio.Task[None]) -> None:
        del self._ahead[message_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("A reply could not go ahead; it is offered once it is here", exc_info=error)

    async def _send_ahead(self, reply: ReplyRow, tree: Tree) -> None:
        run_id = reply.run_id
        try:
            with self._store.expecting(run_id, self._store.missing(run_id, tree)):
                message = message_pb2.Message.FromString(reply.message)
                answer = await self._fleet.push(message, tree, reply.runtime, ())
                wanted = [object_id for object_id in answer.objects_to_push if object_id != tree.object_id]
                await self._push_parts(run_id, wanted)
        except (RunOver, Refused, Interrupted, NotComing, TimeoutError) as error:
            _log.debug("A reply did not go ahead: %s", error)  # it is offered once it is here

    def start(self) -> None:
        """The node has joined: deliver."""
        self._started = True
        for reply, tree in self._replies.values():
            self._deliver(reply, tree)

    def _deliver(self, reply: ReplyRow, tree: Tree) -> None:
        if reply.message_id in self._delivering:
            return
        with logs.bound(run_id=reply.run_id, message_id=reply.message_id):
            task = asyncio.create_task(self._push(reply, tree))
        self._delivering[reply.message_id] = task
        task.add_done_callback(partial(self._done, reply.message_id))

    def _done(self, message_id: str, task: asyncio.Task[None]) -> None:
        self._delivering.pop(message_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("A reply could not be delivered; it is kept for the next start", exc_info=error)

    async def _push(self, reply: ReplyRow, tree: Tree) -> None:
        if reply.message_id in self._ahead:
            await asyncio.wait([self._ahead[reply.message_id][1]])
        try:
            await self._offer(reply, tree)
        except RunOver as error:
            self._owner.end_run(reply.run_id, str(error))
            return
        except Refused as error:
            _log.error("The SuperLink refuses a reply, it is dropped: %s", error)
        self._replies.pop(reply.message_id, None)
        await self._ledger.forget_reply(reply.message_id)
        await self._owner.delivered(reply)

    async def _offer(self, reply: ReplyRow, tree: Tree) -> None:
        """Returns once the SuperLink has the whole reply. RunOver; Refused when it does not take it."""
        message = message_pb2.Message.FromString(reply.message)
        backoff = Backoff(initial=0.5, cap=10.0)
        attempt = 0
        while attempt < _TRIES:
            attempt += 1
            try:
                answer = await self._fleet.push(message, tree, reply.runtime, self._inline(reply.run_id, tree))
                if await self._push_objects(reply.run_id, answer):
                    _log.info("Reply delivered")
                    return
                problem = "it does not take every object of it"
            except Interrupted as error:
                attempt -= 1  # nothing speaks against the reply
                problem = str(error)
            except Refused as error:
                if error.final or attempt == _TRIES:
                    raise
                problem = str(error)
            _log.warning("The SuperLink did not take a reply, offering it again: %s", problem)
            await backoff.wait()
        raise Refused(problem, final=False)

    def _inline(self, run_id: int, tree: Tree) -> list[tuple[str, bytes]]:
        if not self._fleet.inline:
            return []
        inline, room = [], INLINE_ANSWER
        for object_id, content in self._store.small_of(run_id, tree).items():
            if len(content) <= room:
                room -= len(content)
                inline.append((object_id, content))
        return inline

    async def _push_objects(self, run_id: int, answer: fleet_pb2.PushMessagesResponse) -> bool:
        """Sends what the SuperLink lacks, in its order; whether it has all of it now."""
        wanted = list(answer.objects_to_push)
        if wanted and self._fleet.streams:
            return await self._push_parts(run_id, wanted)
        taken: list[bool] = []

        async def push(object_id: str) -> None:
            async with self._gate:
                content = await self._store.read(run_id, object_id)
                self._metrics.bytes_out.inc(len(content))
                taken.append(await self._fleet.push_object(run_id, object_id, content, answer.session_id))

        await gather(*(push(object_id) for object_id in wanted))
        return all(taken)

    async def _push_parts(self, run_id: int, object_ids: Sequence[str]) -> bool:
        """Sends objects, each once it is here; whether the SuperLink has all of them now. NotComing, TimeoutError."""
        problem: NotComing | TimeoutError | None = None

        async def parts() -> AsyncIterator[Part]:
            nonlocal problem
            try:
                for object_id in object_ids:
                    await asyncio.wait_for(self._store.arrival(run_id, object_id), PATIENCE)
                    async for part in self._store.parts(run_id, object_id, PART):
                        self._metrics.bytes_out.inc(len(part.data))
                        yield part
            except (NotComing, TimeoutError) as error:  # in the hands of grpc it would be an error of its own
                problem = error

        stored = await self._fleet.push_objects(run_id, parts())
        if problem is not None:
            raise problem
        return stored.issuperset(object_ids)

    async def end_run(self, run_id: int) -> None:
        """Let go of a run's replies."""
        await cancel([task for reply, task in self._ahead.values() if reply.run_id == run_id])
        ending = [reply for reply, _ in self._replies.values() if reply.run_id == run_id]
        for reply in ending:
            del self._replies[reply.message_id]
        await cancel(self._delivering[one.message_id] for one in ending if one.message_id in self._delivering)

    async def close(self) -> None:
        """Stop; the ledger knows what is not delivered."""
        await cancel([*self._delivering.values(), *(task for _, task in self._ahead.values())])
