"""ClientAppIO of the interior protocol: what executors of ClientApps ask of their SuperNode."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from trellis_kit import logs
from trellis_kit.attempts import Attempts, address_of
from trellis_kit.audit import AuditLog, Entry, Outcome
from trellis_kit.renewable import Renewable
from trellis_wire.bulk import Malformed, decode_part, encode_part
from trellis_wire.objects import ObjectError
from trellis_wire.pb.appio import appio_pb2

from trellis_supernode.app_logs import AppLogs
from trellis_supernode.desk import Orders, Task
from trellis_supernode.node import Node
from trellis_supernode.objects import NotComing

_log = logging.getLogger(__name__)

SERVICE: Final = "trellis.appio.v1.ClientAppIO"
PART: Final = 1024 * 1024
SILENCE = 30.0
"""Seconds without a report after which an executor's stream is ended; it sends one every 5 s."""

_MAX_ID: Final = 200  # characters of a name in audit lines

NO_TASK: Final = "There is no task with this token (any more)."
STOCK_SENTENCE: Final = (
    "This SuperNode is Trellis's and works with Trellis's executor, not with flower-superexec and Flower's own "
    "flwr-clientapp: run the program trellis-clientapp (image trellis/clientapp) with --clientappio-api-address "
    "pointing here. Flower Apps run on it unchanged."
)


class ClientAppIO:
    """The service. `join_tokens` None lets everybody attend who reaches the port. `audit` is told who attends, or may
    not."""

    def __init__(self, node: Node, join_tokens: Renewable | None, audit: AuditLog | None = None) -> None:
        self._node = node
        self._join_tokens = join_tokens
        self._audit = audit
        self._attempts = Attempts()
        self._app_logs = AppLogs()

    def handler(self) -> Any:
        """For `add_generic_rpc_handlers`. The calls that move models take and give bytes, without protobuf's copies."""
        methods = {
            "Attend": grpc.stream_stream_rpc_method_handler(
                self.attend,
                request_deserializer=_report,
                response_serializer=appio_pb2.Order.SerializeToString,
            ),
            "PullObjects": grpc.unary_stream_rpc_method_handler(self.pull_objects),
            "PushObjects": grpc.stream_unary_rpc_method_handler(
                self.push_objects, response_serializer=appio_pb2.PushObjectsResponse.SerializeToString
            ),
            "GetFab": _unary(self.get_fab, appio_pb2.GetFabRequest),
            "PushLogs": _unary(self.push_logs, appio_pb2.PushLogsRequest),
            "FinishTask": _unary(self.finish_task, appio_pb2.FinishTaskRequest),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _task(self, context: Any) -> Task:
        task = self._node.desk.tasks.get(_header(context, "trellis-token"))
        if task is None:
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, NO_TASK)
        assert task is not None
        return task

    # ---- attending -----------------------------------------------------------------------------------------

    async def attend(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Open for as long as the executor is there."""
        address = address_of(context.peer())
        if self._attempts.too_many(address):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Too many failed attempts; try again in a minute.")
        shown = _header(context, "trellis-join-token")
        if self._join_tokens is not None and not self._join_tokens.takes(shown):
            self._attempts.add(address)
            _log.warning("An executor without the join token was refused", extra={"peer": context.peer()})
            self._note(Outcome.DENIED, address, reason="The join token is missing or wrong.")
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "The join token is missing or wrong; give this executor the SuperNode's secret with --join-token-file.",
            )
        reports = aiter(request_iterator)
        hello = await anext(reports, None)
        if hello is None or hello.WhichOneof("report") != "hello" or not hello.hello.executor_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The first report of an executor is its hello.")
        assert hello is not None
        executor_id = hello.hello.executor_id
        self._note(Outcome.COMPLETED, address, executor_id[:_MAX_ID], hello.hello.host[:_MAX_ID])
        orders = self._node.desk.arrive(hello.hello)
        ids = {"executor_id": executor_id, "peer": context.peer()}
        _log.info(
            "An executor attends",
            extra={**ids, "host": hello.hello.host, "guest_flwr": hello.hello.guest_flwr_version},
        )
        listening = asyncio.create_task(self._listen(reports, executor_id, orders))
        listening.add_done_callback(lambda _: orders.put_nowait(None))
        try:
            while (order := await orders.get()) is not None:
                yield order
        finally:
            listening.cancel()
            self._node.desk.leave(executor_id, orders)
            _log.info("The executor's stream ended", extra=ids)

    def _note(
        self, outcome: Outcome, address: str, executor_id: str | None = None, host: str = "", reason: str | None = None
    ) -> None:
        if self._audit is not None:
            kind = "unknown" if executor_id is None else "executor"
            entry = Entry("ClientAppIO.Attend", outcome, kind, executor_id, host or None, address, reason=reason)
            self._audit.note(entry)

    async def _listen(self, reports: AsyncIterator[Any], executor_id: str, orders: Orders) -> None:
        desk = self._node.desk
        while True:
            try:
                report = await asyncio.wait_for(anext(reports), SILENCE)
            except (StopAsyncIteration, TimeoutError, grpc.RpcError, asyncio.InvalidStateError) as end:
                _log.debug("No more reports of the executor: %r", end, extra={"executor_id": executor_id})
                return
            match report.WhichOneof("report"):
                case "free_slots":
                    desk.report_free(executor_id, orders, report.free_slots)
                case "handed_back":
                    desk.handed_back(executor_id, report.handed_back)

    # ---- what a task needs ---------------------------------------------------------------------------------

    async def get_fab(self, request: Any, context: Any) -> Any:
        """The FAB of the task's run."""
        task = await self._task(context)
        content = await asyncio.to_thread(self._node.runs.fab, task.run_id, request.fab_hash)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "The task's run has no such FAB.")
        assert content is not None
        return appio_pb2.GetFabResponse(fab_hash=request.fab_hash, content=content)

    async def pull_objects(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        """Objects of the task's run, one after the other, each as soon as it is here; as serialized parts."""
        task, store = await self._task(context), self._node.store
        request = await _decoded(appio_pb2.PullObjectsRequest, data, context)
        for object_id in request.object_ids:
            try:
                async for part in store.parts(task.run_id, object_id, PART):
                    yield encode_part(part.object_id, part.offset, part.size, part.data)
            except NotComing:
                if self._node.intake.awaits(task.message_id):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, f"Object {object_id} was held up; ask again.")
                await context.abort(grpc.StatusCode.NOT_FOUND, f"The run has no object {object_id} here.")

    async def push_objects(self, request_iterator: AsyncIterator[bytes], context: Any) -> Any:
        """Objects of the task's reply in serialized parts; verified while they come."""
        task = await self._task(context)
        inflow = self._node.store.inflow(task.run_id)
        ids = {"run_id": task.run_id, "peer": context.peer()}
        data: bytes | None = None
        try:
            async for data in request_iterator:
                try:
                    part = decode_part(data)
                except Malformed as error:
                    text = f"The {len(data)} bytes sent are no ObjectPart: malformed or cut off."
                    raise ObjectError(text) from error
                await inflow.add(part)
            if data is None:  # grpc itself refuses what is too large
                raise ObjectError("No part of it came, or one that is too large.")
            await inflow.finish()
        except ObjectError as error:
            _log.warning("An object was refused: %s", error, extra=ids)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except OSError as error:
            await _no_room(context, error)
        finally:
            await inflow.close()
        return appio_pb2.PushObjectsResponse(stored=inflow.arrived)

    async def push_logs(self, request: Any, context: Any) -> Any:
        """Lines of an app; those of a task that has just ended are taken too."""
        token = _header(context, "trellis-token")
        task = self._node.desk.tasks.get(token)
        if task is not None:
            self._app_logs.remember(token, task.handed, task.metadata)
        if not self._app_logs.write(token, request):
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, NO_TASK)
        return appio_pb2.PushLogsResponse()

    async def finish_task(self, request: Any, context: Any) -> Any:
        """The reply. Answered without missing objects only once it is durable."""
        token = _header(context, "trellis-token")
        task = self._node.desk.tasks.get(token)
        if task is None:
            return appio_pb2.FinishTaskResponse()  # told before, or its run is over: nothing is left to be done
        self._app_logs.remember(token, task.handed, task.metadata)
        missing: list[str] = []
        ids = {"run_id": task.run_id, "message_id": task.message_id}
        with logs.bound(**ids, request_id=logs.request_id(_header(context, logs.REQUEST_ID))):
            try:
                missing = await self._node.finish_task(task, request)
            except ObjectError as error:
                _log.warning("A reply was refused: %s", error, extra={"peer": context.peer()})
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except (sqlite3.Error, OSError) as error:
                await _no_room(context, error)
        return appio_pb2.FinishTaskResponse(missing_objects=missing)


def _unary(handler: Any, kind: Any) -> Any:
    async def serve(data: bytes, context: Any) -> Any:
        return await handler(await _decoded(kind, data, context), context)

    return grpc.unary_unary_rpc_method_handler(serve, response_serializer=lambda answer: answer.SerializeToString())


async def _decoded(kind: Any, data: bytes, context: Any) -> Any:
    """The message that was sent; what is none is refused."""
    try:
        return kind.FromString(data)
    except DecodeError:
        text = f"The {len(data)} bytes sent are no {kind.__name__}: malformed or cut off."
        await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, text)


def _report(data: bytes) -> appio_pb2.ExecutorReport:
    """An executor's report; what is none says nothing."""
    try:
        return appio_pb2.ExecutorReport.FromString(data)
    except DecodeError:
        return appio_pb2.ExecutorReport()


async def _refuse(context: Any, status: grpc.StatusCode, text: str) -> None:
    _log.warning("A call was refused: %s", text, extra={"peer": context.peer()})
    await context.abort(status, text)


async def _no_room(context: Any, error: Exception) -> None:
    """The executor keeps what it has and tries again."""
    _log.error("The state directory cannot be written: %s", error)
    await context.abort(grpc.StatusCode.UNAVAILABLE, f"The SuperNode cannot write to its disk: {error}")


def _header(context: Any, name: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return str(value)
    return ""


class StockExecutors(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Tells Flower's own app processes (gRPC, Flower 1.20-1.34) which program to use here."""

    _PREFIXES = ("/flwr.proto.ClientAppIo/", "/flwr.proto.Runtime/")

    def service(self, handler_call_details: Any) -> Any:
        """A handler for any method of theirs."""
        if not str(handler_call_details.method).startswith(self._PREFIXES):
            return None

        async def refuse(_request: bytes, context: Any) -> bytes:
            _log.warning(
                "An executor of stock Flower was refused; this SuperNode works with trellis-clientapp",
                extra={"peer": context.peer(), "method": handler_call_details.method},
            )
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, STOCK_SENTENCE)
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)
