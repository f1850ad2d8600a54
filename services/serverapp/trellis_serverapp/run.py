"""One run: its app in a guest, its messages to and from the SuperLink."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from trellis_kit import logs
from trellis_runner.apps import App, AppProblem, Apps
from trellis_runner.attendance import batches, is_unwanted, persist
from trellis_runner.frames import GuestGone, Header
from trellis_runner.host import GuestHost, guest_work
from trellis_runner.log_push import LogPush
from trellis_runner.records import FrameRecords, Packer, read_records
from trellis_runner.room import join
from trellis_runner.transfer import Transfer, pack
from trellis_runner.zygote import Guest, GuestProblem, describe_end
from trellis_wire import config
from trellis_wire.messages import ErrorCode, MessageError, decode_message_object
from trellis_wire.objects import Buffer, ObjectError, ObjectSource
from trellis_wire.pb.appio import appio_pb2, appio_pb2_grpc
from trellis_wire.records import Record, deflate, inflate, inflate_message

from trellis_serverapp import artifacts
from trellis_serverapp.confirmations import Confirmations

_log = logging.getLogger(__name__)

_Outcome = appio_pb2.FinishRunRequest
_PUSH_LIMIT = 8 * 1024 * 1024  # bytes of parcels in one call
_THERE_SECONDS = 0.2  # how long a pull that does not wait gives the first reply that is there
_NEXT_SECONDS = 0.05  # and each further one
_MAX_CALLS = 1000  # of one app at once
_MAX_REASON = 4000  # characters
_EXIT_SECONDS = 5.0  # what threads and exit handlers of an app get
_LAST_LOG_SECONDS = 2.0  # how long the last lines of a run that was stopped may take

_Result = tuple[_Outcome.Outcome.ValueType, str, dict[str, Record] | None]


class RunHost:
    """Hosts one run from its order to its end. `stop()` ends it from outside."""

    def __init__(
        self, work: appio_pb2.Work, stub: appio_pb2_grpc.ServerAppIOAsyncStub, host: GuestHost, apps: Apps
    ) -> None:
        self.token = work.token
        self._work = work
        self._run = work.run
        self._stub = stub
        self._host = host
        self._apps = apps
        self._transfer = Transfer(stub, work.token)
        self._metadata = self._transfer.metadata
        self._stopped = asyncio.Event()
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._app: App | None = None

    async def run(self) -> None:
        """Until the SuperLink knows how the run ended (or that nobody wants to know any more)."""
        with logs.bound(run_id=self._run.run_id, request_id=self._transfer.request_id):
            pushed_logs = LogPush(self._stub, self._metadata)
            self._confirmations = Confirmations(self._stub, self._metadata)
            hosting = asyncio.create_task(self._result(pushed_logs))
            stopped = asyncio.create_task(self._stopped.wait())
            try:
                await asyncio.wait({hosting, stopped}, return_when=asyncio.FIRST_COMPLETED)
                result = hosting.result() if hosting.done() else None
                if result is not None:
                    await self._keep_artifacts(pushed_logs)
                    await self._confirmations.close()
                    await pushed_logs.close()
                    await self._finish(*result)
            finally:
                leftover = [hosting, stopped, *self._answers.values()]
                for task in leftover:
                    task.cancel()
                await asyncio.gather(*leftover, return_exceptions=True)
                await self._confirmations.abandon()
                await pushed_logs.close(_LAST_LOG_SECONDS)
                self._apps.forget(self._run.run_id)

    async def _result(self, pushed_logs: LogPush) -> _Result | None:
        """How the run ends, whatever happens here: given back it would fail again. None when nobody wants to know."""
        try:
            return await self._host_app(pushed_logs)
        except grpc.aio.AioRpcError as refusal:
            if is_unwanted(refusal):
                _log.warning("The SuperLink does not want this run any more: %s", refusal.details())
                return None
            reason = f"The SuperLink refused what the run needs: {refusal.details()}"
            _log.error("%s", reason)
        except Exception as problem:
            _log.exception("The run failed in the executor")
            reason = f"The executor failed: {type(problem).__name__}: {problem}"
        return _Outcome.FAILED, reason, None

    async def _host_app(self, pushed_logs: LogPush) -> _Result:
        try:
            app = self._app = await self._apps.open(self._run, self._fetch_fab)
            if app.info.serverapp is None:
                raise AppProblem("The app's pyproject.toml names no serverapp under [tool.flwr.app.components].")
            state: dict[str, Record] = {}
            if self._work.HasField("state"):
                tree, objects = await self._transfer.fetch(self._work.state)
                state = inflate(tree, objects.__getitem__, assemble=join)
            guest = await self._host.fork("server", pushed_logs.add)
        except (AppProblem, GuestProblem, ObjectError) as problem:
            _log.error("%s", problem)
            return _Outcome.FAILED, str(problem), None
        try:
            await self._begin(guest, app, state)
            result = await self._serve(guest)
        except GuestGone:
            reason = f"The ServerApp's process {describe_end(await self._host.release(guest))}."
            _log.error("%s", reason)
            return _Outcome.FAILED, reason, None
        except BaseException:
            await self._host.release(guest, patience=0.0)
            raise
        await self._host.release(guest, patience=_EXIT_SECONDS)
        return result

    async def _keep_artifacts(self, pushed_logs: LogPush) -> None:
        if self._app is None:
            return
        line = await artifacts.push(self._stub, self._metadata, self._run.run_id, self._app.work_dir)
        if line is not None:
            pushed_logs.add([appio_pb2.LogLine(timestamp=time.time(), level="INFO", text=f"{line}\n")])

    async def _fetch_fab(self, fab_hash: str) -> bytes:
        request = appio_pb2.GetFabRequest(fab_hash=fab_hash)
        response = await persist(lambda: self._stub.GetFab(request, metadata=self._metadata))
        content: bytes = response.content
        return content

    async def _begin(self, guest: Guest, app: App, state: dict[str, Record]) -> None:
        run, records = self._run, FrameRecords()
        described = records.describe(state)
        work = guest_work(
            run_id=run.run_id,
            node_id=run.node_id,
            node_config=config.from_appio(run.node_config),
            run_config=app.run_config,
            override_config=config.from_appio(run.override_config),
            series_id=run.series_id,
            fab_id=run.fab_id,
            fab_version=run.fab_version,
            fab_hash=run.fab_hash,
            app_dir=str(app.app_dir),
            work_dir=str(app.work_dir),
            reference=app.info.serverapp,
            state=described,
        )
        await guest.frames.send(work, records.buffers)

    async def _serve(self, guest: Guest) -> _Result:
        """Answers what the app asks until it has ended."""
        while True:
            header, buffers = await guest.frames.receive()
            match header["op"]:
                case "completed":
                    self._host.preimport(header["modules"])
                    state = None if header["state"] is None else read_records(header["state"], buffers)
                    return _Outcome.COMPLETED, "", state
                case "failed":
                    return _Outcome.FAILED, str(header["reason"])[:_MAX_REASON], None
                case "forget":
                    task = self._answers.pop(header["id"], None)
                    if task is not None:
                        task.cancel()
                case _ if len(self._answers) >= _MAX_CALLS:
                    await self._tell_failure(guest, header["id"], f"The app has {_MAX_CALLS} calls open already.")
                case _:
                    task = asyncio.create_task(self._answer(guest, header, buffers))
                    self._answers[header["id"]] = task
                    task.add_done_callback(partial(self._answered, header["id"]))

    def _answered(self, number: int, task: asyncio.Task[None]) -> None:
        self._answers.pop(number, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("A call of the app could not be answered", exc_info=error)

    async def _answer(self, guest: Guest, header: Header, buffers: Sequence[Buffer]) -> None:
        number = header["id"]
        try:
            match header["op"]:
                case "running":
                    await persist(
                        lambda: self._stub.StartRunning(appio_pb2.StartRunningRequest(), metadata=self._metadata)
                    )
                    await guest.frames.send({"id": number})
                case "nodes":
                    await guest.frames.send({"id": number, "nodes": await self._nodes()})
                case "push":
                    ids = await self._push(header["messages"], buffers)
                    await guest.frames.send({"id": number, "message_ids": ids})
                case "replies":
                    await self._replies(guest, number, header["ids"], wait=not header["now"])
                case unknown:
                    await guest.frames.send({"id": number, "failed": f"The executor knows no {unknown!r}."})
        except grpc.aio.AioRpcError as error:
            await self._tell_failure(guest, number, f"The SuperLink refused: {error.details()}")
        except (ObjectError, TypeError, ValueError) as error:
            await self._tell_failure(guest, number, str(error))
        except GuestGone:
            return

    async def _tell_failure(self, guest: Guest, number: int, text: str) -> None:
        _log.warning("%s", text)
        try:
            await guest.frames.send({"id": number, "failed": text})
        except GuestGone:
            return

    async def _nodes(self) -> list[dict[str, Any]]:
        response = await persist(lambda: self._stub.GetNodes(appio_pb2.GetNodesRequest(), metadata=self._metadata))
        return [{"node_id": node.node_id, "name": node.name} for node in response.nodes]

    async def _push(self, described: Sequence[Header], buffers: Sequence[Buffer]) -> list[str]:
        """Sends instructions; their ids in order, empty for one that was refused (as stock does)."""
        large = sum(len(buffer) for buffer in buffers) > 1024 * 1024
        packer = Packer(buffers)

        def pack_all() -> list[appio_pb2.Parcel]:
            return [pack(packer.pack(one)[1], packer.objects) for one in described]

        parcels = await asyncio.to_thread(pack_all) if large else pack_all()
        ids: list[str] = []
        for group in batches(parcels, _PUSH_LIMIT):
            request = appio_pb2.PushMessagesRequest(messages=group)
            push = partial(self._stub.PushMessages, request, metadata=self._metadata)
            response = await persist(push)
            await self._transfer.push(packer.objects, response.missing_objects)
            for parcel, refusal in zip(group, response.refusals, strict=True):
                ids.append("" if refusal else parcel.tree.object_id)
                if refusal:
                    _log.warning("A message was refused: %s", refusal)
        return ids

    async def _replies(self, guest: Guest, number: int, ids: Sequence[str], *, wait: bool) -> None:
        left = dict.fromkeys(ids)

        async def stream() -> None:
            call = self._stub.StreamReplies(
                appio_pb2.StreamRepliesRequest(instruction_ids=list(left)), metadata=self._metadata
            )
            try:
                patience = None if wait else _THERE_SECONDS
                while left:
                    reply = await asyncio.wait_for(call.read(), patience)
                    if not isinstance(reply, appio_pb2.Reply):
                        break  # the stream ended in order
                    patience = None if wait else _NEXT_SECONDS
                    if reply.instruction_id in left:
                        await self._hand_over(guest, number, reply)
                        del left[reply.instruction_id]
            except TimeoutError:
                left.clear()  # what is not there yet is for the next pull
            finally:
                call.cancel()

        while left:
            await persist(stream)
        await guest.frames.send({"id": number, "done": True})

    async def _hand_over(self, guest: Guest, number: int, reply: appio_pb2.Reply) -> None:
        tree, objects = await self._transfer.fetch(reply.parcel)
        metadata, error, _ = decode_message_object(objects[tree.object_id])
        records = None
        try:
            _, _, records = inflate_message(tree, objects.__getitem__, assemble=join)
        except ObjectError as problem:
            # A pickled array, for example: the bad reply of one site is no reason to end the run.
            error = MessageError(ErrorCode.UNKNOWN, f"Node {metadata.src_node_id} sent a bad reply: {problem}")
            _log.warning("%s", error.reason, extra={"message_id": tree.object_id})
        frame = FrameRecords()
        described = frame.describe_message(metadata, error, records)
        await guest.frames.send({"id": number, "message": described}, frame.buffers)
        self._confirmations.add(tree.object_id)

    async def _finish(self, outcome: _Outcome.Outcome.ValueType, reason: str, state: dict[str, Record] | None) -> None:
        request = appio_pb2.FinishRunRequest(outcome=outcome, reason=reason)
        sources: dict[str, ObjectSource] = {}
        if state is not None:
            bundle = deflate(state)
            sources = dict(bundle.objects)
            request.state.CopyFrom(pack(bundle.tree, sources))
        try:
            while True:
                response = await persist(lambda: self._stub.FinishRun(request, metadata=self._metadata))
                if not response.missing_objects:
                    break
                await self._transfer.push(sources, response.missing_objects)
        except grpc.aio.AioRpcError as error:
            _log.warning("The SuperLink does not want to know how the run ended: %s", error.details())
            return
        _log.info("The run ended: %s%s", _Outcome.Outcome.Name(outcome).lower(), f" ({reason})" if reason else "")

    def stop(self) -> None:
        """End the guest now; the run's end is then somebody else's word."""
        self._stopped.set()
