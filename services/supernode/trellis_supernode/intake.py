"""Instructions on their way in: kept, completed with their objects, and put on the desk."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from trellis_kit import logs
from trellis_kit.retry import Backoff
from trellis_wire.bulk import Malformed
from trellis_wire.messages import ErrorCode, Metadata
from trellis_wire.objects import ObjectError, Tree
from trellis_wire.pb.edge import fleet_pb2, message_pb2

from trellis_supernode.fleet import FleetClient, Interrupted, ObjectGone, Refused, RunOver
from trellis_supernode.ledger import Ledger, TaskRow
from trellis_supernode.metrics import Metrics
from trellis_supernode.objects import ObjectStore, verified
from trellis_supernode.runs import RunBook
from trellis_supernode.waiting import cancel, gather

_log = logging.getLogger(__name__)

PARALLEL: Final = 3
"""Objects that this node pulls at once from a SuperLink of stock, over all its runs; each is 20 MiB at most."""
_RECENT: Final = 2  # instructions of a run whose objects are kept for the next: evaluate and train share the model


class Owner(Protocol):
    """Whose intake it is."""

    def knows(self, message_id: str) -> bool:
        """Whether the instruction is on the desk or has a reply already."""

    def accept(self, metadata: Metadata, tree: Tree) -> None:
        """An instruction may be worked on: its objects are here, or can be waited for at the store."""

    def withdraw(self, message_id: str) -> None:
        """An accepted instruction does not get complete: nobody is to work on it."""

    async def answer(self, instruction: Metadata, code: ErrorCode, reason: str) -> None:
        """The instruction gets an error for a reply."""

    def end_run(self, run_id: int, why: str) -> None:
        """The run is over."""


@dataclass
class _Arrival:
    metadata: Metadata
    tree: Tree
    work: asyncio.Task[None]
    accepted: bool  # on the desk (or answered) already


class Intake:
    """Each instruction is in the ledger, and its objects are kept, before the SuperLink is told that it arrived. It is
    on the desk before that."""

    def __init__(
        self, fleet: FleetClient, ledger: Ledger, store: ObjectStore, runs: RunBook, metrics: Metrics, owner: Owner
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._store = store
        self._runs = runs
        self._metrics = metrics
        self._owner = owner
        self._gate = asyncio.Semaphore(PARALLEL)
        self._trouble = Backoff(initial=0.1, cap=5.0)
        self._arrivals: dict[str, _Arrival] = {}
        self._recent: dict[int, list[Tree]] = {}

    @property
    def incomplete(self) -> int:
        """How many instructions are coming in that the desk does not have yet."""
        return sum(not one.accepted for one in self._arrivals.values())

    @property
    def message_ids(self) -> list[str]:
        """The instructions under way."""
        return list(self._arrivals)

    def awaits(self, message_id: str) -> bool:
        """Whether objects of this instruction are still to come."""
        return message_id in self._arrivals

    def trees(self, run_id: int) -> list[Tree]:
        """The trees of a run that are needed here."""
        arriving = [one.tree for one in self._arrivals.values() if one.metadata.run_id == run_id]
        return [*arriving, *self._recent.get(run_id, ())]

    def take(self, answer: fleet_pb2.PullMessagesResponse) -> bool:
        """What a pull brought; whether there was an instruction in it that is new and sound."""
        before = len(self._arrivals)
        inline = [(one.object_id, one.content) for one in answer.trellis_objects]
        if len(answer.messages_list) != len(answer.message_object_trees):
            _log.error("The SuperLink sent instructions without their object trees; they are left out")
            return False
        for message, proto in zip(answer.messages_list, answer.message_object_trees, strict=True):
            metadata = Metadata.from_edge(message.metadata)
            if metadata.message_id in self._arrivals or self._owner.knows(metadata.message_id):
                continue
            with logs.bound(run_id=metadata.run_id, message_id=metadata.message_id):
                self._take(message, metadata, proto, inline)
        return len(self._arrivals) > before

    def _take(
        self,
        message: message_pb2.Message,
        metadata: Metadata,
        proto: message_pb2.ObjectTree,
        inline: Iterable[tuple[str, bytes]],
    ) -> None:
        try:
            tree = Tree.from_edge(proto)
            if tree.object_id != metadata.message_id:
                raise ObjectError("The root of its tree is another message.")
            ids = set(tree.post_order())
            known = {one: content for one, content in inline if one in ids}
            small = verified((one, content) for one, content in known.items() if not self._has(metadata, one))
        except ObjectError as error:
            _log.error("An instruction is malformed and left out: %s", error)
            return
        if metadata.expires_at <= time.time():
            _log.warning("An instruction has expired and is left out")
            return
        self._metrics.instructions.inc()
        self._store.add_small(metadata.run_id, small)
        row = TaskRow(
            metadata.message_id,
            metadata.run_id,
            message_pb2.Message(metadata=message.metadata).SerializeToString(),
            tree.to_edge().SerializeToString(),
            time.time(),
        )
        # The executor may begin while the disk is at work; the SuperLink is told once the instruction is kept.
        self._start(metadata, tree, self._ledger.keep_task(row, small))

    def _has(self, metadata: Metadata, object_id: str) -> bool:
        return self._store.has(metadata.run_id, object_id)

    def resume(self, metadata: Metadata, tree: Tree) -> None:
        """An instruction that an earlier life of this node kept, but did not have all objects of."""
        with logs.bound(run_id=metadata.run_id, message_id=metadata.message_id):
            self._start(metadata, tree, None)

    def _start(self, metadata: Metadata, tree: Tree, kept: asyncio.Future[None] | None) -> None:
        self._recent[metadata.run_id] = [*self._recent.get(metadata.run_id, ())[1 - _RECENT :], tree]
        complete = self._runs.usable(metadata.run_id) and not self._store.missing(metadata.run_id, tree)
        if complete:  # the short way: nothing to wait for
            self._owner.accept(metadata, tree)
        work = asyncio.create_task(self._confirm(metadata, kept) if complete else self._complete(metadata, tree, kept))
        self._arrivals[metadata.message_id] = _Arrival(metadata, tree, work, complete)
        work.add_done_callback(partial(self._done, metadata.message_id))

    def _done(self, message_id: str, work: asyncio.Task[None]) -> None:
        self._arrivals.pop(message_id, None)
        if not work.cancelled() and (error := work.exception()) is not None:
            _log.error(
                "An instruction is here, but its arrival could not be made certain: %s: %s",
                type(error).__name__,
                error,
                extra={"message_id": message_id},
            )

    async def _complete(self, metadata: Metadata, tree: Tree, kept: asyncio.Future[None] | None) -> None:
        run_id = metadata.run_id
        try:
            await self._runs.learn(run_id)
            problem = self._runs.problem(run_id)
            if problem is not None:
                await self._owner.answer(metadata, ErrorCode.INVALID_FAB, problem)
            else:
                await self._bring(metadata, tree)
        except RunOver as error:
            self._owner.end_run(run_id, str(error))
            return
        except (Refused, ObjectGone, ObjectError, Malformed) as error:
            _log.warning("An instruction cannot be completed: %s", error)
            await self._owner.answer(metadata, ErrorCode.MESSAGE_UNAVAILABLE, str(error))
        await self._confirm(metadata, kept)

    async def _bring(self, metadata: Metadata, tree: Tree) -> None:
        """Fetches what is not here and keeps it. An executor may begin as soon as the message's own object is here: it
        gets the others as they come. ObjectGone, ObjectError, Malformed, RunOver, Refused."""
        run_id = metadata.run_id
        before = self._store.small_of(run_id, tree).keys()
        with self._store.expecting(run_id, self._store.missing(run_id, tree)):
            accepting = asyncio.create_task(self._accept(metadata, tree))
            try:
                while missing := self._store.missing(run_id, tree):
                    await self._pull(run_id, missing)
                await accepting
            except Exception:
                self._owner.withdraw(metadata.message_id)
                raise  # where there was no room, the SuperLink delivers it again
            finally:
                await cancel([accepting])
        small = self._store.small_of(run_id, tree)
        await self._store.keep(run_id, tree)
        if new := {object_id: content for object_id, content in small.items() if object_id not in before}:
            await self._ledger.keep_objects(run_id, new)

    async def _confirm(self, metadata: Metadata, kept: asyncio.Future[None] | None) -> None:
        try:
            if kept is not None:
                await kept
            if not self._fleet.inline:  # our SuperLink learns from each pull what this node works on
                await self._fleet.confirm(metadata.run_id, metadata.message_id)
        except RunOver as error:
            self._owner.end_run(metadata.run_id, str(error))
        except Refused as error:
            _log.debug("The SuperLink does not want to know that the instruction is here: %s", error)
        except sqlite3.Error as error:
            _log.error("The state directory cannot be written; the SuperLink keeps the instruction: %s", error)

    async def _accept(self, metadata: Metadata, tree: Tree) -> None:
        await self._store.arrival(metadata.run_id, tree.object_id)
        self._arrivals[metadata.message_id].accepted = True
        self._owner.accept(metadata, tree)

    async def _pull(self, run_id: int, object_ids: Sequence[str]) -> None:
        """Fetches objects; all of them, or as many as came before the SuperLink went away."""
        if self._fleet.streams:
            try:
                await self._pull_parts(run_id, object_ids)
                self._trouble.reset()
            except Interrupted as error:
                _log.info("Objects on their way were held up: %s", error)
                await self._trouble.wait()
            return

        async def fetch(object_id: str) -> None:
            async with self._gate:
                content = await self._fleet.object(run_id, object_id)
                self._metrics.bytes_in.inc(len(content))
                await self._store.put(run_id, object_id, content)

        await gather(*(fetch(object_id) for object_id in object_ids))

    async def _pull_parts(self, run_id: int, object_ids: Sequence[str]) -> None:
        inflow = self._store.inflow(run_id)
        try:
            async for part in self._fleet.pull_objects(run_id, object_ids):
                self._metrics.bytes_in.inc(len(part.data))
                await inflow.add(part)
            if not await inflow.finish():
                raise ObjectGone("The SuperLink sent none of the objects that it was asked for.")
        finally:
            await inflow.close()

    async def end_run(self, run_id: int) -> None:
        """Let go of a run's instructions."""
        self._recent.pop(run_id, None)
        await cancel(one.work for one in self._arrivals.values() if one.metadata.run_id == run_id)

    async def close(self) -> None:
        """Stop; the ledger knows what is under way."""
        await cancel(one.work for one in self._arrivals.values())
