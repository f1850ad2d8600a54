"""One task: an instruction in, the app in a guest, a reply and the run's state out."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from trellis_kit import logs
from trellis_runner.apps import AppProblem, Apps
from trellis_runner.attendance import is_unwanted, persist
from trellis_runner.frames import GuestGone
from trellis_runner.host import guest_work
from trellis_runner.log_push import LogPush
from trellis_runner.records import FrameRecords, Packer, read_records
from trellis_runner.room import join
from trellis_runner.transfer import Transfer, pack
from trellis_runner.zygote import GuestProblem, describe_end
from trellis_wire import config
from trellis_wire.messages import (
    ErrorCode,
    MessageError,
    Metadata,
    decode_message_object,
    error_reply_from_node,
)
from trellis_wire.objects import Buffer, ObjectError, ObjectSource, Tree
from trellis_wire.pb.appio import appio_pb2, appio_pb2_grpc
from trellis_wire.records import Record, deflate, inflate, inflate_message

from trellis_clientapp.guests import Guests

_log = logging.getLogger(__name__)

_MAX_REASON = 4000  # characters
_LOG_SECONDS = 30.0  # how long last lines wait for a SuperNode that is away


class TaskHost:
    """Hosts one task from its order to its end. `stop()` ends it from outside: nothing is reported then."""

    def __init__(
        self, work: appio_pb2.Work, stub: appio_pb2_grpc.ClientAppIOAsyncStub, guests: Guests, apps: Apps
    ) -> None:
        self.token = work.token
        self._work = work
        self._stub = stub
        self._guests = guests
        self._apps = apps
        self._transfer = Transfer(stub, work.token)
        self._metadata = self._transfer.metadata
        self._stopped = asyncio.Event()
        self._ending: asyncio.Task[Any] | None = None  # the guest's end, after its reply

    async def run(self) -> None:
        """Until the SuperNode has the reply; the guest's end and its last log lines are not waited for."""
        run, message_id = self._work.run, self._work.instruction.tree.object_id
        ids = {"run_id": run.run_id, "node_id": run.node_id, "message_id": message_id}
        with logs.bound(**ids, request_id=self._transfer.request_id):
            pushed_logs = LogPush(self._stub, self._metadata)
            working = asyncio.create_task(self._work_and_finish(pushed_logs))
            stopped = asyncio.create_task(self._stopped.wait())
            try:
                await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    working.result()
            finally:
                working.cancel()
                stopped.cancel()
                await asyncio.gather(working, stopped, return_exceptions=True)
                self._guests.background(self._close(pushed_logs))
                self._guests.background(self._guests.prepare())

    async def _work_and_finish(self, pushed_logs: LogPush) -> None:
        try:
            await self._answer(pushed_logs)
        except grpc.aio.AioRpcError as refusal:
            if not is_unwanted(refusal):
                raise
            _log.warning("The SuperNode does not want this task any more: %s", refusal.details())
        else:
            _log.info("Answered")

    async def _answer(self, pushed_logs: LogPush) -> None:
        tree, objects = await self._transfer.fetch(self._work.instruction)
        instruction, error, _ = decode_message_object(objects[tree.object_id])
        try:
            _, _, records = inflate_message(tree, objects.__getitem__, assemble=join)
        except ObjectError as problem:  # a pickled array, for example: no other executor could read it either
            await self._tell(instruction, ErrorCode.UNKNOWN, f"The instruction cannot be read: {problem}")
            return
        del objects
        try:
            await self._finish(*await self._reply(pushed_logs, instruction, error, records))
        except grpc.aio.AioRpcError as refusal:
            if is_unwanted(refusal):
                raise
            reason = f"The SuperNode refused what the task needs: {refusal.details()}"
            await self._tell(instruction, ErrorCode.INVALID_FAB, reason)
        except Exception as problem:  # handed out again it would fail again
            _log.exception("The task failed in the executor")
            reason = f"The executor failed: {type(problem).__name__}: {problem}"
            await self._tell(instruction, ErrorCode.CLIENT_APP_CRASHED, reason)

    async def _tell(self, instruction: Metadata, code: ErrorCode, reason: str) -> None:
        _log.error("%s", reason)
        await self._finish(*_error_reply(instruction, code, reason))

    async def _close(self, pushed_logs: LogPush) -> None:
        if self._ending is not None:
            await self._ending
        await pushed_logs.close(_LOG_SECONDS)

    async def _reply(
        self,
        pushed_logs: LogPush,
        instruction: Metadata,
        error: MessageError | None,
        records: Mapping[str, Record] | None,
    ) -> tuple[appio_pb2.FinishTaskRequest, dict[str, ObjectSource]]:
        try:
            app = await self._apps.open(self._work.run, self._fetch_fab)
            if app.info.clientapp is None:
                raise AppProblem("The app's pyproject.toml names no clientapp under [tool.flwr.app.components].")
            state_tree, state = await self._state()
        except (AppProblem, ObjectError) as problem:
            _log.error("%s", problem)
            return _error_reply(instruction, ErrorCode.INVALID_FAB, str(problem))
        run, frame = self._work.run, FrameRecords()
        work = guest_work(
            run_id=run.run_id,
            node_id=run.node_id,
            node_config=config.from_appio(run.node_config),
            run_config=app.run_config,
            series_id=run.series_id,
            app_dir=str(app.app_dir),
            work_dir=str(app.work_dir),
            reference=app.info.clientapp,
            state=frame.describe(state),
            message=frame.describe_message(instruction, error, records),
        )
        try:
            guest = await self._guests.take(run.run_id, pushed_logs.add)
        except GuestProblem as problem:
            _log.error("%s", problem)
            return _error_reply(instruction, ErrorCode.LOAD_CLIENT_APP, str(problem))
        try:
            await guest.frames.send(work, frame.buffers)
            header, buffers = await guest.frames.receive()
        except GuestGone:
            code = await self._guests.drop(guest)
            reason = f"The ClientApp's process {describe_end(code)}."
            _log.error("%s", reason)
            return _error_reply(instruction, ErrorCode.CLIENT_APP_CRASHED, reason)
        except BaseException:
            self._ending = self._guests.background(self._guests.drop(guest, kill=True))
            raise
        guest.pump.drain()
        self._ending = self._guests.give_back(run.run_id, guest, header)
        try:
            if header["op"] == "error":
                return _error_reply(instruction, header["code"], header["reason"])
            return (
                await asyncio.to_thread(_reply_request, header, buffers, state_tree, instruction)
                if sum(map(len, buffers)) > 1024 * 1024
                else _reply_request(header, buffers, state_tree, instruction)
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
            reason = f"The ClientApp's process gave no reply that can be sent: {problem}"
            _log.error("%s", reason)
            return _error_reply(instruction, ErrorCode.CLIENT_APP_RAISED, reason)

    async def _fetch_fab(self, fab_hash: str) -> bytes:
        request = appio_pb2.GetFabRequest(fab_hash=fab_hash)
        response = await persist(lambda: self._stub.GetFab(request, metadata=self._metadata))
        content: bytes = response.content
        return content

    async def _state(self) -> tuple[Tree | None, dict[str, Record]]:
        if not self._work.HasField("state"):
            return None, {}
        tree, objects = await self._transfer.fetch(self._work.state)
        return tree, inflate(tree, objects.__getitem__, assemble=join)

    async def _finish(self, request: appio_pb2.FinishTaskRequest, sources: Mapping[str, ObjectSource]) -> None:
        while True:
            response = await persist(lambda: self._stub.FinishTask(request, metadata=self._metadata))
            if not response.missing_objects:
                return
            await self._transfer.push(sources, response.missing_objects)

    def stop(self) -> None:
        """End the guest now."""
        self._stopped.set()


def _reply_request(
    header: dict[str, Any], buffers: Sequence[Buffer], state_before: Tree | None, instruction: Metadata
) -> tuple[appio_pb2.FinishTaskRequest, dict[str, ObjectSource]]:
    """What the guest made of its message; nothing of it is taken on trust."""
    packer = Packer(buffers)
    metadata, tree = packer.pack(header["message"])
    if _ends(metadata) != (
        instruction.run_id,
        instruction.message_id,
        instruction.dst_node_id,
        instruction.src_node_id,
    ):
        raise ValueError("it answers another message; make it with Message(content, reply_to=message)")
    sources = packer.objects
    runtime = header["runtime"]
    request = appio_pb2.FinishTaskRequest(reply=pack(tree, sources), runtime=runtime if 0 <= runtime < math.inf else 0)
    state = read_records(header["state"], buffers)
    if state or state_before is not None:
        bundle = deflate(state)
        if bundle.tree != state_before:
            sources.update(bundle.objects)
            request.state.CopyFrom(pack(bundle.tree, sources))
    return request, sources


def _ends(reply: Metadata) -> tuple[int, str, int, int]:
    return reply.run_id, reply.reply_to_message_id, reply.src_node_id, reply.dst_node_id


def _error_reply(
    instruction: Metadata, code: int, reason: str
) -> tuple[appio_pb2.FinishTaskRequest, dict[str, ObjectSource]]:
    cut = MessageError(code, reason[:_MAX_REASON])
    metadata, content = error_reply_from_node(instruction, cut, now=time.time())
    objects = {metadata.message_id: ObjectSource(b"", content)}
    return appio_pb2.FinishTaskRequest(reply=pack(Tree(metadata.message_id), objects)), objects
