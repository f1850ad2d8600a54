"""The site's node: the desk with its intake and its outbox, and what executors ask of it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from trellis_kit.isolation import Isolation
from trellis_wire import config
from trellis_wire.messages import (
    ErrorCode,
    MessageError,
    Metadata,
    decode_message_object,
    error_reply_from_node,
)
from trellis_wire.objects import ObjectError, Tree
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import message_pb2, records_pb2

from trellis_supernode.desk import Desk, Task
from trellis_supernode.fleet import FleetClient
from trellis_supernode.intake import Intake
from trellis_supernode.ledger import Kept, Ledger, ReplyRow
from trellis_supernode.metrics import Metrics
from trellis_supernode.objects import ObjectStore, verified
from trellis_supernode.outbox import Outbox
from trellis_supernode.policy import Gate
from trellis_supernode.reply_filter import ReplyFilter, Withheld
from trellis_supernode.runs import RunBook
from trellis_supernode.waiting import cancel

_log = logging.getLogger(__name__)

INLINE_PARCEL: Final = 1024 * 1024
"""Bytes of objects that travel inside one parcel to an executor, besides its root."""


class Node:
    """Everything of one node but its connections: `open` before use, `close` after."""

    def __init__(
        self,
        fleet: FleetClient,
        ledger: Ledger,
        state_dir: Path,
        secret: bytes,
        node_config: config.Config,
        isolation: Isolation,
        metrics: Metrics,
        gate: Gate | None = None,
        reply_filter: ReplyFilter | None = None,
    ) -> None:
        """`gate` None lets every run in, `reply_filter` None every reply out."""
        self._filter = reply_filter
        self._ledger = ledger
        self._isolation = isolation
        self._metrics = metrics
        self._ending: dict[int, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self.news = asyncio.Event()  # set whenever capacity, work or replies may have changed
        self.store = ObjectStore(state_dir / "objects")
        self.runs = RunBook(fleet, ledger, state_dir / "fabs", node_config, gate)
        self.desk = Desk(secret, self)
        self.intake = Intake(fleet, ledger, self.store, self.runs, metrics, self)
        self.outbox = Outbox(fleet, ledger, self.store, metrics, self)

    def open(self, kept: Kept) -> None:
        """Takes up what the ledger kept from an earlier life."""
        self.store.open()
        for run_id, objects in kept.objects.items():
            self.store.add_small(run_id, objects)
        self.runs.open(kept.runs)
        for reply in kept.replies:
            self.outbox.add(reply)
        for row in kept.tasks:
            metadata = Metadata.from_edge(message_pb2.Message.FromString(row.message).metadata)
            tree = Tree.from_edge(message_pb2.ObjectTree.FromString(row.tree))
            if self.runs.usable(row.run_id) and not self.store.missing(row.run_id, tree):
                self.desk.restore(metadata, tree, row.attempts)
            else:
                self.intake.resume(metadata, tree)
        if kept.tasks or kept.replies:
            _log.info("Taken up again: %d instruction(s), %d reply(ies)", len(kept.tasks), len(kept.replies))
        known = {*self.runs.ids, *(row.run_id for row in kept.tasks)}
        for run_id in self.store.runs - known:
            self.store.forget(run_id)
        for run_id in known:
            self._tidy(run_id)

    async def close(self) -> None:
        """Ends what is under way; the ledger keeps it for the next life."""
        await self.intake.close()
        await self.outbox.close()
        await cancel([*self._ending.values(), *self._jobs])
        await self.store.close()

    @property
    def working_on(self) -> list[str]:
        """The instructions that are here and not answered yet as the SuperLink sees it."""
        on_desk = (task.message_id for task in self.desk.tasks.values())
        return list(dict.fromkeys([*on_desk, *self.intake.message_ids, *self.outbox.instruction_ids]))

    def knows(self, message_id: str) -> bool:
        """Whether the instruction is on the desk or has a reply already."""
        return self.desk.token(message_id) in self.desk.tasks or message_id in self.outbox.instruction_ids

    # ---- what the desk asks and tells ----------------------------------------------------------------------

    def make_work(self, task: Task) -> appio_pb2.Work:
        """What an executor is told: the run, the instruction, and the state that the run's last message left."""
        work = appio_pb2.Work(token=task.token, run=self.runs.info(task.run_id, task.metadata.dst_node_id))
        self._fill(work.instruction, task.run_id, task.tree)
        state = self.runs.states.get(task.run_id)
        if state is not None:
            self._fill(work.state, task.run_id, state)
        return work

    def _fill(self, parcel: appio_pb2.Parcel, run_id: int, tree: Tree) -> None:
        parcel.tree.CopyFrom(tree.to_appio())
        room = INLINE_PARCEL
        for object_id, content in self.store.small_of(run_id, tree).items():
            if object_id == tree.object_id or len(content) <= room:
                room -= len(content)
                parcel.objects.add(object_id=object_id, content=content)

    def gave_up(self, task: Task) -> None:
        """The desk tells: the task's executors kept dying."""
        reason = f"The ClientApp was handed out {task.attempts} times and its executor went away each time."
        _log.error("%s", reason, extra={"run_id": task.run_id, "message_id": task.message_id})
        self._job(self.answer(task.metadata, ErrorCode.CLIENT_APP_CRASHED, reason))

    def retried(self, task: Task) -> None:
        """The desk tells: an executor was lost with the task."""
        self._job(_settled(self._ledger.count_attempt(task.message_id, task.attempts)))

    def expired(self, task: Task) -> None:
        """The desk tells: nobody waits for the task's reply any more."""
        _log.warning(
            "An instruction has expired and is not worked on",
            extra={"run_id": task.run_id, "message_id": task.message_id},
        )
        self._job(_settled(self._ledger.forget_task(task.message_id)))

    def changed(self) -> None:
        """The desk tells: capacity or waiting work may have changed."""
        self.news.set()
        self._isolation.work_waits(bool(self.desk.waiting) and not self.desk.attending)
        self._metrics.tasks.set(len(self.desk.tasks))
        self._metrics.executors.set(len(self.desk.attending))
        self._metrics.undelivered.set(len(self.outbox))

    # ---- what the intake tells -----------------------------------------------------------------------------

    def accept(self, metadata: Metadata, tree: Tree) -> None:
        """The intake tells: an instruction may be worked on."""
        self.desk.add(metadata, tree)

    def withdraw(self, message_id: str) -> None:
        """The intake tells: an accepted instruction does not get complete."""
        self.desk.stop(self.desk.token(message_id))

    async def answer(self, instruction: Metadata, code: ErrorCode, reason: str, state: Tree | None = None) -> None:
        """Replies to an instruction with an error of this node's own; the app's new state is kept all the same."""
        error = MessageError(code, reason)
        metadata, content = error_reply_from_node(instruction, error, now=time.time())
        self.store.add_small(instruction.run_id, {metadata.message_id: content})
        tree = Tree(metadata.message_id)
        await self._keep_reply(_reply_row(instruction, metadata, error, tree, 0.0), tree, state)

    # ---- what executors bring ------------------------------------------------------------------------------

    async def finish_task(self, task: Task, request: appio_pb2.FinishTaskRequest) -> list[str]:
        """Takes a reply and the run's new state; the objects that are missing, or [] once all is durable.

        ObjectError for what is malformed, sqlite3.Error and OSError where the disk does not take it.
        """
        async with task.finishing:
            if task.token not in self.desk.tasks:
                return []  # the same reply, told twice
            tree = Tree.from_appio(request.reply.tree)
            state = Tree.from_appio(request.state.tree) if request.HasField("state") else None
            inside = [*request.reply.objects, *request.state.objects]
            small = verified((one.object_id, one.content) for one in inside)
            metadata, error = _read_root(task.metadata, tree, small)
            task.reply = (tree,) if state is None else (tree, state)
            wanted = {object_id for one in task.reply for object_id in one.post_order()}
            self.store.add_small(task.run_id, {one: content for one, content in small.items() if one in wanted})
            row = _reply_row(task.metadata, metadata, error, tree, request.runtime)
            missing = self.store.missing(task.run_id, *task.reply)
            if not missing:
                if self._filter is None:
                    await self._keep_reply(row, tree, state)
                elif error is None:
                    await self._filter_and_keep(task, self._filter, metadata, tree, state, request.runtime)
                else:
                    await self._keep_without_words(task, error, state)
            elif self._filter is None:
                self.outbox.send_ahead(row, tree)
            return missing

    async def _filter_and_keep(
        self,
        task: Task,
        reply_filter: ReplyFilter,
        metadata: Metadata,
        tree: Tree,
        state: Tree | None,
        runtime: float,
    ) -> None:
        run_id = task.run_id
        # The app wrote these two, and they travel beside the records that the filter sees.
        metadata = replace(metadata, group_id=task.metadata.group_id, message_type=task.metadata.message_type)
        objects = {one: await self.store.read(run_id, one) for one in tree.post_order()}
        fab_id = self.runs.info(run_id, task.metadata.dst_node_id).fab_id
        try:
            left = await reply_filter(fab_id, metadata, tree, objects)
        except Withheld as error:
            await self.answer(task.metadata, ErrorCode.REPLY_UNAVAILABLE, str(error), state)
            return
        task.reply = (*task.reply, left.tree)  # what is needed is not tidied away meanwhile
        for object_id, source in left.objects.items():
            await self.store.put(run_id, object_id, source.content())
        row = _reply_row(task.metadata, left.metadata, None, left.tree, runtime)
        await self._keep_reply(row, left.tree, state)

    async def _keep_without_words(self, task: Task, error: MessageError, state: Tree | None) -> None:
        """An app's error on a site that filters replies: its text may quote the data, so only its kind leaves."""
        known = error.code in {int(one) for one in ErrorCode}
        _log.error("What an app failed of is kept here: %s", error.reason, extra={"run_id": task.run_id})
        reason = "The app failed; this site filters replies and keeps what it said: its operator finds it in the log."
        await self.answer(task.metadata, ErrorCode(error.code) if known else ErrorCode.UNKNOWN, reason, state)

    async def _keep_reply(self, row: ReplyRow, tree: Tree, state: Tree | None) -> None:
        """The reply takes the place of its instruction, durably; then it is on its way and the next task may begin."""
        run_id = row.run_id
        trees = (tree,) if state is None else (tree, state)
        await self.store.keep(run_id, *trees)
        small = self.store.small_of(run_id, *trees)
        await self._ledger.keep_reply(row, small, None if state is None else state.to_edge().SerializeToString())
        if run_id in self._ending:
            return
        if state is not None:
            self.runs.states[run_id] = state
        self._metrics.replies.inc()
        self.outbox.add(row, tree)
        self.desk.remove(self.desk.token(row.instruction_id))

    # ---- what is not needed any more -----------------------------------------------------------------------

    async def delivered(self, reply: ReplyRow) -> None:
        """The outbox tells: a reply has left it."""
        self._tidy(reply.run_id)
        self.changed()

    def _tidy(self, run_id: int) -> None:
        """Drops the objects that nothing of the run refers to any more."""
        trees = [*self.intake.trees(run_id), *self.outbox.trees(run_id)]
        for task in self.desk.of_run(run_id):
            trees += [task.tree, *task.reply]
        if run_id in self.runs.states:
            trees.append(self.runs.states[run_id])
        dropped = self.store.keep_only(run_id, {one for tree in trees for one in tree.post_order()})
        if dropped:
            self._job(_settled(self._ledger.forget_objects(run_id, dropped)))

    def end_run(self, run_id: int, why: str) -> None:
        """Forgets a run and everything of it. May be called from inside of what it ends."""
        if run_id in self._ending:
            return
        _log.info("Done with a run: %s", why, extra={"run_id": run_id})
        self.desk.stop_run(run_id)
        self._ending[run_id] = ending = asyncio.create_task(self._forget(run_id))
        ending.add_done_callback(partial(self._ended, run_id))

    async def _forget(self, run_id: int) -> None:
        await self.intake.end_run(run_id)
        await self.outbox.end_run(run_id)
        self.desk.stop_run(run_id)
        self.runs.forget(run_id)
        self.store.forget(run_id)
        await _settled(self._ledger.forget_run(run_id))

    def _ended(self, run_id: int, ending: asyncio.Task[None]) -> None:
        self._ending.pop(run_id, None)
        if not ending.cancelled() and (error := ending.exception()) is not None:
            _log.error("A run could not be forgotten", exc_info=error, extra={"run_id": run_id})
        self.changed()

    def _job(self, work: object) -> None:
        job: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)


def _read_root(instruction: Metadata, tree: Tree, objects: dict[str, bytes]) -> tuple[Metadata, MessageError | None]:
    """The metadata and error of a reply, which has to be one to this instruction. ObjectError."""
    root = objects.get(tree.object_id)
    if root is None:
        raise ObjectError("The root of a parcel travels inside it.")
    metadata, error, content_id = decode_message_object(root)
    if [content_id] * (content_id is not None) != [child.object_id for child in tree.children]:
        raise ObjectError("The reply has another content than its tree says.")
    expected = (instruction.message_id, instruction.run_id, instruction.dst_node_id, instruction.src_node_id)
    if (metadata.reply_to_message_id, metadata.run_id, metadata.src_node_id, metadata.dst_node_id) != expected:
        raise ObjectError("The reply is not one to this instruction.")
    return metadata, error


def _reply_row(
    instruction: Metadata, metadata: Metadata, error: MessageError | None, tree: Tree, runtime: float
) -> ReplyRow:
    message = message_pb2.Message(metadata=metadata.to_edge())
    if error is None:
        message.content.CopyFrom(records_pb2.RecordDict())
    else:
        message.error.CopyFrom(error.to_edge())
    return ReplyRow(
        metadata.message_id,
        instruction.run_id,
        instruction.message_id,
        message.SerializeToString(),
        tree.to_edge().SerializeToString(),
        runtime,
    )


async def _settled(write: asyncio.Future[None]) -> None:
    """A write that only saves work after a restart: where the disk does not take it, that work is done again."""
    try:
        await write
    except sqlite3.Error as error:
        _log.warning("The state directory cannot be written: %s", error)
