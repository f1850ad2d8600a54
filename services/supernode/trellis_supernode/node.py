"""The site's node: takes instructions from the SuperLink, has them worked on, delivers the replies."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from trellis_kit import logs
from trellis_kit.isolation import Isolation
from trellis_kit.lifecycle import Fatal, Stop
from trellis_wire import config, fab
from trellis_wire.messages import (
    ErrorCode,
    MessageError,
    Metadata,
    decode_message_object,
    error_reply_from_node,
)
from trellis_wire.objects import ObjectError, Tree, verify_object
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import fleet_pb2, message_pb2, records_pb2

from trellis_supernode.desk import Desk, Task
from trellis_supernode.fleet import HEARTBEAT_INTERVAL, FleetClient, ObjectGone, Refused, RunOver, gather_bounded
from trellis_supernode.ledger import Kept, Ledger, ReplyRow, RunRow, TaskRow
from trellis_supernode.metrics import Metrics
from trellis_supernode.objects import SMALL, ObjectStore

_log = logging.getLogger(__name__)

INLINE_ANSWER: Final = 1024 * 1024
"""Bytes of objects that travel along with one reply at most."""
PARALLEL: Final = 3
"""Objects under way at once, in each direction."""
_WATCH_SECONDS = 15.0  # how often a busy node asks whether its runs still go on
_EMPTY_SECONDS = 1.0  # before the next pull where the SuperLink does not hold calls
_PUSH_TRIES = 5


class Node:
    """Everything of one node but its ports. `open`, then `run`, then `close`."""

    def __init__(
        self,
        fleet: FleetClient,
        ledger: Ledger,
        state_dir: Path,
        node_config: config.Config,
        isolation: Isolation,
        metrics: Metrics,
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._fabs = state_dir / "fabs"
        self.store = ObjectStore(state_dir / "objects")
        self._node_config = node_config
        self._isolation = isolation
        self._metrics = metrics
        self._runs: dict[int, appio_pb2.RunInfo] = {}
        self._problems: dict[int, str] = {}
        self._states: dict[int, Tree] = {}
        self._recent: dict[int, list[Tree]] = {}  # the trees of the last instructions: the next may share objects
        self._replies: dict[str, ReplyRow] = {}
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._delivering: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self.desk: Desk = None  # type: ignore[assignment]  # made by open(), which needs the ledger's secret

    # ---- start and end -------------------------------------------------------------------------------------

    async def open(self, kept: Kept, secret: bytes) -> None:
        """Takes up what the ledger kept from an earlier life."""
        self._fabs.mkdir(parents=True, exist_ok=True)
        self.desk = Desk(
            secret, make_work=self._make_work, gave_up=self._gave_up, retried=self._retried, changed=self._changed
        )
        for run_id, object_id in self.store.open(kept.objects):
            content = await self._ledger.object(run_id, object_id)
            if content is not None:
                self.store.add_small(run_id, {object_id: content})
        for run in kept.runs:
            self._runs[run.run_id] = appio_pb2.RunInfo.FromString(run.info)
            if run.problem:
                self._problems[run.run_id] = run.problem
            if run.state is not None:
                self._states[run.run_id] = Tree.from_edge(message_pb2.ObjectTree.FromString(run.state))
        for reply in kept.replies:
            self._replies[reply.message_id] = reply
        for row in kept.tasks:
            metadata = Metadata.from_edge(message_pb2.Message.FromString(row.message).metadata)
            tree = Tree.from_edge(message_pb2.ObjectTree.FromString(row.tree))
            self.desk.add(Task(metadata, tree, self.desk.token(row.message_id), row.attempts))
        if kept.tasks or kept.replies:
            _log.info("Taken up again: %d instruction(s), %d reply(ies)", len(kept.tasks), len(kept.replies))

    async def run(self, stop: Stop, *, register: bool) -> None:
        """Joins, works until asked to stop, and gives what is under way the grace period."""
        node_id = await self._until(stop, self._fleet.join(register=register))
        if node_id is None:
            return
        _log.info("The node is online", extra={"node_id": node_id})
        loops = [
            asyncio.create_task(loop, name=name)
            for name, loop in (("heartbeat", self._heartbeats()), ("pull", self._pulls()), ("watch", self._watch()))
        ]
        for reply in self._replies.values():
            self._deliver(reply)
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([*loops, stopping], return_when=asyncio.FIRST_COMPLETED)
            for loop in loops:
                if loop.done():
                    loop.result()
            loops[1].cancel()  # no more instructions
            await self._finish(stop)
            await asyncio.wait_for(self._fleet.leave(), 5.0)
        except TimeoutError:
            _log.info("The SuperLink did not hear the goodbye in time")
        finally:
            for task in [*loops, stopping, *self._taking.values(), *self._delivering.values()]:
                task.cancel()
            await asyncio.gather(*loops, *self._taking.values(), *self._delivering.values(), return_exceptions=True)

    async def _until(self, stop: Stop, work: object) -> int | None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stopping.cancel()

    async def _finish(self, stop: Stop) -> None:
        """What is being worked on may end, and replies may leave; the rest is kept for the next start."""
        while (self._working or self._replies) and stop.remaining() > 1.0:
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), min(1.0, stop.remaining()))
            except TimeoutError:
                continue
        if self._working or self._replies:
            _log.warning("Kept for the next start: %d task(s), %d reply(ies)", len(self._working), len(self._replies))

    @property
    def _working(self) -> list[Task]:
        return [task for task in self.desk.tasks.values() if task.executor_id is not None]

    # ---- loops ---------------------------------------------------------------------------------------------

    async def _heartbeats(self) -> None:
        while True:
            await self._fleet.heartbeat()
            # As Flower's own nodes: early enough that one lost beat does no harm, and never all at once.
            await asyncio.sleep((HEARTBEAT_INTERVAL - 5) * (0.8 + random.uniform(-0.1, 0.1)))

    async def _pulls(self) -> None:
        while True:
            while (capacity := self.desk.capacity - len(self._taking)) <= 0:
                self._room.clear()
                await self._room.wait()
            began = time.monotonic()
            working_on = [*self._taking, *(task.message_id for task in self.desk.tasks.values())]
            working_on += [reply.instruction_id for reply in self._replies.values()]
            try:
                answer = await self._fleet.pull(capacity, working_on, list(self._runs))
            except Refused as error:
                _log.error("The SuperLink refuses to give work: %s", error)
                await asyncio.sleep(_EMPTY_SECONDS)
                continue
            for run_id in answer.trellis_ended_runs:
                await self._end_run(run_id, "it is over")
            self._take(answer)
            if not answer.messages_list and not self._fleet.inline and time.monotonic() - began < _EMPTY_SECONDS:
                await asyncio.sleep(_EMPTY_SECONDS)

    async def _watch(self) -> None:
        """While messages are worked on no call is held that could tell of a run's end."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for run_id in {task.run_id for task in self._working}:
                try:
                    await self._fleet.run(run_id)
                except (RunOver, Refused) as error:
                    await self._end_run(run_id, str(error))

    def _changed(self) -> None:
        self._room.set()
        if self.desk is not None:
            self._isolation.work_waits(bool(self.desk.waiting) and not self.desk.attending)
            self._metrics.tasks.set(len(self.desk.tasks))
            self._metrics.executors.set(len(self.desk.attending))

    # ---- taking instructions -------------------------------------------------------------------------------

    def _take(self, answer: fleet_pb2.PullMessagesResponse) -> None:
        inline = {one.object_id: one.content for one in answer.trellis_objects}
        for message, proto in zip(answer.messages_list, answer.message_object_trees, strict=True):
            metadata = Metadata.from_edge(message.metadata)
            known = {task.message_id for task in self.desk.tasks.values()} | set(self._taking)
            known |= {reply.instruction_id for reply in self._replies.values()}
            if metadata.message_id in known:
                continue
            with logs.bound(run_id=metadata.run_id, message_id=metadata.message_id):
                try:
                    tree = Tree.from_edge(proto)
                    for object_id in tree.post_order():
                        if object_id in inline:
                            verify_object(object_id, inline[object_id])
                except ObjectError as error:
                    _log.error("An instruction is malformed and left out: %s", error)
                    continue
                self._metrics.instructions.inc()
                task = asyncio.create_task(self._accept(message, metadata, tree, inline))
            self._taking[metadata.message_id] = task
            task.add_done_callback(partial(self._taken, metadata.message_id))

    def _taken(self, message_id: str, task: asyncio.Task[None]) -> None:
        self._taking.pop(message_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("An instruction could not be taken", exc_info=error)
        self._changed()

    async def _accept(
        self, message: message_pb2.Message, metadata: Metadata, tree: Tree, inline: Mapping[str, bytes]
    ) -> None:
        run_id = metadata.run_id
        if metadata.expires_at <= time.time():
            _log.warning("An instruction has expired and is left out")
            return
        try:
            if run_id not in self._runs:
                await self._learn_run(run_id)
            self._recent[run_id] = [*self._recent.get(run_id, [])[-1:], tree]
            small = {one: inline[one] for one in self.store.missing(run_id, tree) if one in inline}
            self.store.add_small(run_id, small)
            small.update(await self._pull_objects(run_id, tree))
        except (RunOver, Refused) as error:
            await self._end_run(run_id, str(error))
            return
        except ExceptionGroup as group:
            if any(isinstance(error, RunOver) for error in group.exceptions):
                await self._end_run(run_id, "it is over")
                return
            _log.warning("An instruction is left out: %s", group.exceptions[0])
            return
        except ObjectGone as error:
            _log.warning("An instruction is left out: %s", error)
            return
        row = TaskRow(
            metadata.message_id,
            run_id,
            message_pb2.Message(metadata=message.metadata).SerializeToString(),
            tree.to_edge().SerializeToString(),
            time.time(),
        )
        kept = self._ledger.keep_task(row, small)
        # The executor may begin while the disk is at work; the SuperLink is told once the instruction is kept.
        if run_id in self._problems:
            await kept
            await self._reply_error(metadata, ErrorCode.INVALID_FAB, self._problems[run_id])
        else:
            self.desk.add(Task(metadata, tree, self.desk.token(metadata.message_id)))
        try:
            await kept
            await self._fleet.confirm(run_id, metadata.message_id)
        except (RunOver, Refused) as error:
            _log.debug("The SuperLink does not want to know that the instruction is here: %s", error)
        except sqlite3.Error as error:
            raise Fatal(f"The state directory cannot be written: {error}") from error

    async def _learn_run(self, run_id: int) -> None:
        run = await self._fleet.run(run_id)
        info = appio_pb2.RunInfo(
            run_id=run_id,
            node_id=self._fleet.node_id,
            fab_id=run.fab_id,
            fab_version=run.fab_version,
            fab_hash=run.fab_hash,
            override_config=config.to_appio(config.from_edge(run.override_config)),
            node_config=config.to_appio(self._node_config),
            series_id=run.series_id,
        )
        problem: str | None = None
        path = self._fabs / run.fab_hash
        if not path.exists():
            content = await self._fleet.fab(run_id, run.fab_hash)
            problem = await asyncio.to_thread(_keep_fab, content, run.fab_hash, path)
        if problem:
            _log.error("The run's app cannot be used: %s", problem)
            self._problems[run_id] = problem
        await self._ledger.keep_run(RunRow(run_id, info.SerializeToString(), problem))
        self._runs[run_id] = info
        _log.info("Working for a new run", extra={"fab_id": run.fab_id, "fab_version": run.fab_version})

    async def _pull_objects(self, run_id: int, tree: Tree) -> dict[str, bytes]:
        """Fetches what is not here; returns the small ones, for the ledger."""
        small: dict[str, bytes] = {}

        async def fetch(object_id: str) -> None:
            content = await self._fleet.object(run_id, object_id)
            self._metrics.bytes_in.inc(len(content))
            writer = self.store.writer(run_id, object_id, len(content))
            try:
                await writer.add(0, content)
                if (kept := await writer.finish()) is not None:
                    small[object_id] = kept
            except BaseException:
                writer.abort()
                raise

        missing = self.store.missing(run_id, tree)
        if missing:
            await gather_bounded(PARALLEL, *(fetch(object_id) for object_id in missing))
        return small

    def fab(self, fab_hash: str) -> bytes | None:
        """A FAB of one of this node's runs."""
        if not any(info.fab_hash == fab_hash for info in self._runs.values()):
            return None
        return (self._fabs / fab_hash).read_bytes()

    # ---- what executors get and give -----------------------------------------------------------------------

    def _make_work(self, task: Task) -> appio_pb2.Work:
        work = appio_pb2.Work(token=task.token, run=self._runs[task.run_id])
        self._fill(work.instruction, task.run_id, task.tree)
        state = self._states.get(task.run_id)
        if state is not None:
            self._fill(work.state, task.run_id, state)
        return work

    def _fill(self, parcel: appio_pb2.Parcel, run_id: int, tree: Tree) -> None:
        parcel.tree.CopyFrom(tree.to_appio())
        room = INLINE_ANSWER
        for object_id, content in self.store.small_of(run_id, tree).items():
            if object_id == tree.object_id or len(content) <= room:
                room -= len(content)
                parcel.objects.add(object_id=object_id, content=content)

    async def finish_task(self, task: Task, request: appio_pb2.FinishTaskRequest) -> list[str]:
        """Takes a reply and the run's new state; returns the objects that are missing, or [] once all is durable.

        ObjectError for what is malformed.
        """
        run_id = task.run_id
        tree = Tree.from_appio(request.reply.tree)
        small = _verified([*request.reply.objects, *request.state.objects])
        root = small.get(tree.object_id)
        if root is None:
            raise ObjectError("The root of a parcel travels inside it.")
        metadata, error, _ = decode_message_object(root)
        if metadata.reply_to_message_id != task.message_id:
            raise ObjectError("The reply answers another instruction.")
        state = Tree.from_appio(request.state.tree) if request.HasField("state") else None
        self.store.add_small(run_id, small)
        missing = self.store.missing(run_id, tree)
        if state is not None:
            missing += [one for one in self.store.missing(run_id, state) if one not in missing]
        if missing:
            return missing
        wanted = {*tree.post_order(), *(state.post_order() if state is not None else ())}
        await self._keep_reply(task, metadata, error, tree, state, request.runtime, wanted)
        return []

    async def _keep_reply(
        self,
        task: Task,
        metadata: Metadata,
        error: MessageError | None,
        tree: Tree,
        state: Tree | None,
        runtime: float,
        wanted: set[str],
    ) -> None:
        run_id = task.run_id
        message = message_pb2.Message(metadata=metadata.to_edge())
        if error is None:
            message.content.CopyFrom(records_pb2.RecordDict())
        else:
            message.error.CopyFrom(error.to_edge())
        row = ReplyRow(
            metadata.message_id,
            run_id,
            task.message_id,
            message.SerializeToString(),
            tree.to_edge().SerializeToString(),
            runtime,
        )
        small = {one: self.store.read(run_id, one) for one in wanted if self.store.size(run_id, one) <= SMALL}
        await self._ledger.keep_reply(row, small, None if state is None else state.to_edge().SerializeToString())
        if state is not None:
            self._states[run_id] = state
        self._replies[row.message_id] = row
        self._metrics.replies.inc()
        self.desk.remove(task.token)
        self._deliver(row)

    async def _reply_error(self, instruction: Metadata, code: ErrorCode, reason: str) -> None:
        problem = MessageError(code, reason)
        metadata, content = error_reply_from_node(instruction, problem, now=time.time())
        self.store.add_small(instruction.run_id, {metadata.message_id: content})
        task = Task(instruction, Tree(metadata.message_id), self.desk.token(instruction.message_id))
        tree = Tree(metadata.message_id)
        await self._keep_reply(task, metadata, problem, tree, None, 0.0, {metadata.message_id})

    def _gave_up(self, task: Task) -> None:
        reason = f"The ClientApp was handed out {task.attempts} times and its executor went away each time."
        _log.error("%s", reason, extra={"run_id": task.run_id, "message_id": task.message_id})
        coroutine = self._reply_error(task.metadata, ErrorCode.CLIENT_APP_CRASHED, reason)
        self._background(coroutine, task.message_id)

    def _retried(self, task: Task) -> None:
        self._ledger.count_attempt(task.message_id, task.attempts)

    def _background(self, coroutine: object, key: str) -> None:
        task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        self._taking[key] = task
        task.add_done_callback(partial(self._taken, key))

    # ---- delivering replies --------------------------------------------------------------------------------

    def _deliver(self, reply: ReplyRow) -> None:
        with logs.bound(run_id=reply.run_id, message_id=reply.message_id):
            task = asyncio.create_task(self._push(reply))
        self._delivering[reply.message_id] = task
        task.add_done_callback(partial(self._delivered, reply.message_id))

    def _delivered(self, message_id: str, task: asyncio.Task[None]) -> None:
        self._delivering.pop(message_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("A reply could not be delivered; it is kept for the next start", exc_info=error)

    async def _push(self, reply: ReplyRow) -> None:
        message = message_pb2.Message.FromString(reply.message)
        tree = Tree.from_edge(message_pb2.ObjectTree.FromString(reply.tree))
        inline, room = [], INLINE_ANSWER
        for object_id, content in self.store.small_of(reply.run_id, tree).items():
            if len(content) <= room:
                room -= len(content)
                inline.append((object_id, content))
        try:
            for _ in range(_PUSH_TRIES):
                answer = await self._fleet.push(message, tree, reply.runtime, inline)
                if await self._push_objects(reply.run_id, answer):
                    _log.debug("Reply delivered")
                    break
                _log.warning("The SuperLink did not take every object of a reply; offering it again")
            else:
                _log.error("The SuperLink does not take the objects of a reply; it is dropped")
        except RunOver as error:
            await self._end_run(reply.run_id, str(error))
            return
        except Refused as error:
            _log.error("The SuperLink refuses a reply, it is dropped: %s", error)
        except ExceptionGroup as group:
            if any(isinstance(error, RunOver) for error in group.exceptions):
                await self._end_run(reply.run_id, "it is over")
                return
            _log.error("A reply could not be delivered, it is dropped: %s", group.exceptions[0])
        await self._ledger.forget_reply(reply.message_id)
        self._replies.pop(reply.message_id, None)
        await self._tidy(reply.run_id)
        self._changed()

    async def _push_objects(self, run_id: int, answer: fleet_pb2.PushMessagesResponse) -> bool:
        taken: list[bool] = []

        async def push(object_id: str) -> None:
            content = await asyncio.to_thread(self.store.read, run_id, object_id)
            self._metrics.bytes_out.inc(len(content))
            taken.append(await self._fleet.push_object(run_id, object_id, content, answer.session_id))

        if answer.objects_to_push:
            await gather_bounded(PARALLEL, *(push(object_id) for object_id in answer.objects_to_push))
        return all(taken)

    # ---- what is not needed any more -----------------------------------------------------------------------

    async def _tidy(self, run_id: int) -> None:
        """Drops the objects that nothing of the run refers to any more."""
        trees = [*self._recent.get(run_id, ()), *(task.tree for task in self.desk.of_run(run_id))]
        if run_id in self._states:
            trees.append(self._states[run_id])
        for reply in self._replies.values():
            if reply.run_id == run_id:
                trees.append(Tree.from_edge(message_pb2.ObjectTree.FromString(reply.tree)))
        if any(task.run_id == run_id for task in self._working):
            return  # a reply may be on its way in; the next tidying takes care
        dropped = self.store.keep_only(run_id, {one for tree in trees for one in tree.post_order()})
        if dropped:
            await self._ledger.forget_objects(run_id, dropped)

    async def _end_run(self, run_id: int, why: str) -> None:
        """Forgets a run and everything of it."""
        if run_id not in self._runs:
            return
        _log.info("Done with a run: %s", why, extra={"run_id": run_id})
        self.desk.stop_run(run_id)
        for reply in [reply for reply in self._replies.values() if reply.run_id == run_id]:
            del self._replies[reply.message_id]
        info = self._runs.pop(run_id)
        for kept in (self._problems, self._states, self._recent):
            kept.pop(run_id, None)
        self.store.forget(run_id)
        await self._ledger.forget_run(run_id)
        if not any(other.fab_hash == info.fab_hash for other in self._runs.values()):
            (self._fabs / info.fab_hash).unlink(missing_ok=True)
        self._changed()


def _verified(objects: list[appio_pb2.Object]) -> dict[str, bytes]:
    for one in objects:
        verify_object(one.object_id, one.content)
    return {one.object_id: one.content for one in objects}


def _keep_fab(content: bytes, fab_hash: str, path: Path) -> str | None:
    """Verifies and keeps a FAB; what is wrong with it, or None."""
    if fab.fab_hash(content) != fab_hash:
        return "The FAB that the SuperLink sent is not the run's: its SHA-256 differs."
    try:
        fab.inspect(content)
    except fab.FabError as error:
        return str(error)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(content)
    temporary.rename(path)
    return None
