"""ClientAppIO of the interior protocol: what executors of ClientApps ask of their SuperNode."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from trellis_kit import logs
from trellis_wire.objects import ObjectError
from trellis_wire.pb.appio import appio_pb2, appio_pb2_grpc

from trellis_supernode.desk import Task
from trellis_supernode.ledger import Ledger
from trellis_supernode.node import Node
from trellis_supernode.objects import Writer

_log = logging.getLogger(__name__)
_app_log = logging.getLogger("app")

PART: Final = 1024 * 1024
SILENCE: Final = 30.0
"""Seconds without a report after which an executor's stream is ended; it sends one every 5 s."""
_LEVELS = {"ERR": logging.WARNING, "ERROR": logging.ERROR, "WARNING": logging.WARNING, "DEBUG": logging.DEBUG}

STOCK_SENTENCE: Final = (
    "This SuperNode is Trellis's and works with Trellis's executor, not with flower-superexec and Flower's own "
    "flwr-clientapp: run the program trellis-clientapp (image trellis/clientapp) with --clientappio-api-address "
    "pointing here. Flower Apps run on it unchanged."
)


class ClientAppIO(appio_pb2_grpc.ClientAppIOServicer):
    """The service. `join_token` None lets everybody attend who reaches the port."""

    def __init__(self, node: Node, ledger: Ledger, join_token: str | None) -> None:
        self._node = node
        self._ledger = ledger
        self._join_token = join_token

    async def _task(self, context: Any) -> Task:
        token = _header(context, "trellis-token")
        task = self._node.desk.tasks.get(token)
        if task is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "There is no task with this token (any more).")
        assert task is not None
        return task

    async def Attend(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Open for as long as the executor is there."""
        if self._join_token is not None and not hmac.compare_digest(
            _header(context, "trellis-join-token").encode(), self._join_token.encode()
        ):
            _log.warning("An executor without the join token was refused", extra={"peer": context.peer()})
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
        orders = self._node.desk.arrive(hello.hello)
        _log.info(
            "An executor attends",
            extra={"executor_id": executor_id, "host": hello.hello.host, "guest_flwr": hello.hello.guest_flwr_version},
        )
        listening = asyncio.create_task(self._listen(reports, executor_id, orders))
        try:
            while True:
                order = asyncio.create_task(orders.get())
                await asyncio.wait({order, listening}, return_when=asyncio.FIRST_COMPLETED)
                if not order.done():
                    order.cancel()
                    return
                yield order.result()
        finally:
            listening.cancel()
            listening.add_done_callback(_ended)
            self._node.desk.leave(executor_id, orders)
            _log.info("The executor's stream ended", extra={"executor_id": executor_id})

    async def _listen(self, reports: AsyncIterator[Any], executor_id: str, orders: asyncio.Queue[Any]) -> None:
        desk = self._node.desk
        while True:
            try:
                report = await asyncio.wait_for(anext(reports), SILENCE)
            except (StopAsyncIteration, TimeoutError):
                return
            match report.WhichOneof("report"):
                case "free_slots":
                    desk.report_free(executor_id, orders, report.free_slots)
                case "handed_back":
                    desk.handed_back(executor_id, report.handed_back)

    async def GetFab(self, request: Any, context: Any) -> Any:
        await self._task(context)
        content = await asyncio.to_thread(self._node.fab, request.fab_hash)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "No run of this node uses that FAB.")
        assert content is not None
        return appio_pb2.GetFabResponse(fab_hash=request.fab_hash, content=content)

    async def PullObjects(self, request: Any, context: Any) -> AsyncIterator[Any]:
        task, store = await self._task(context), self._node.store
        for object_id in request.object_ids:
            try:
                size, parts = store.size(task.run_id, object_id), store.parts(task.run_id, object_id, PART)
            except KeyError:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"The run has no object {object_id} here.")
            offset = 0
            for part in parts:
                yield appio_pb2.ObjectPart(object_id=object_id, offset=offset, size=size, data=part)
                offset += len(part)

    async def PushObjects(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        task = await self._task(context)
        writer: Writer | None = None
        stored: list[str] = []
        small: dict[str, bytes] = {}
        try:
            async for part in request_iterator:
                if writer is None:
                    writer = self._node.store.writer(task.run_id, part.object_id, part.size)
                if part.object_id != writer.object_id:
                    raise ObjectError("An object's parts were followed by another object's before it was whole.")
                await writer.add(part.offset, part.data)
                if writer.complete:
                    if (content := await writer.finish()) is not None:
                        small[writer.object_id] = content
                    stored.append(writer.object_id)
                    writer = None
        except ObjectError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            if writer is not None:
                writer.abort()
        return appio_pb2.PushObjectsResponse(stored=stored)

    async def PushLogs(self, request: Any, context: Any) -> Any:
        task = self._node.desk.tasks.get(_header(context, "trellis-token"))
        ids = {} if task is None else {"run_id": task.run_id, "message_id": task.message_id}
        with logs.bound(**ids):
            for line in request.lines:
                _app_log.log(_LEVELS.get(line.level, logging.INFO), "%s", line.text.rstrip("\n"))
        return appio_pb2.PushLogsResponse()

    async def FinishTask(self, request: Any, context: Any) -> Any:
        token = _header(context, "trellis-token")
        task = self._node.desk.tasks.get(token)
        if task is None:
            return appio_pb2.FinishTaskResponse()  # told before, or its run is over: nothing is left to be done
        with logs.bound(run_id=task.run_id, message_id=task.message_id):
            try:
                missing = await self._node.finish_task(task, request)
            except ObjectError as error:
                _log.warning("A reply was refused: %s", error)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return appio_pb2.FinishTaskResponse(missing_objects=missing)


def _ended(listening: asyncio.Task[None]) -> None:
    if not listening.cancelled() and (error := listening.exception()) is not None:
        _log.debug("The executor's reports ended: %s", error)


def _header(context: Any, name: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return str(value)
    return ""


class StockExecutors(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Tells Flower's own app processes which program to use here."""

    _PREFIXES = ("/flwr.proto.ClientAppIo/", "/flwr.proto.Runtime/")

    def service(self, handler_call_details: Any) -> Any:
        """A handler for any method of theirs."""
        if not str(handler_call_details.method).startswith(self._PREFIXES):
            return None

        async def refuse(_request: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, STOCK_SENTENCE)
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)
