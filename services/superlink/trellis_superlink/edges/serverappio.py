"""ServerAppIO of the interior protocol: executors attend, are handed runs, and speak for them with the run's token."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence

from grpc import StatusCode
from trellis_wire.objects import ObjectError
from trellis_wire.pb.appio import appio_pb2

from trellis_superlink.core.executors import Attendance, Drop, Hello, Order, Stop, Work
from trellis_superlink.core.logs import LogLine
from trellis_superlink.core.objects import PART
from trellis_superlink.core.principals import SUPERLINK_NODE_ID, Principal
from trellis_superlink.core.runs import Outcome
from trellis_superlink.core.service import Core
from trellis_superlink.edges import convert, parts
from trellis_superlink.edges.credentials import CredentialProvider, identify
from trellis_superlink.edges.errors import EdgeError
from trellis_superlink.edges.flow import Flow
from trellis_superlink.edges.rpc import Call, Drain, Service
from trellis_superlink.metrics import Metrics

_log = logging.getLogger(__name__)

SERVICE = "trellis.appio.v1.ServerAppIO"
TOKEN = "trellis-token"
MAX_REQUEST = 32 * 1024 * 1024
"""Bytes of one request: many small messages may be pushed at once; objects come in parts of 1 MiB."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")

SILENCE = 30.0
"""Seconds without a report after which an executor's stream is ended; it sends `alive` every 5 s."""

_OUTCOMES = {
    appio_pb2.FinishRunRequest.COMPLETED: Outcome.COMPLETED,
    appio_pb2.FinishRunRequest.FAILED: Outcome.FAILED,
    appio_pb2.FinishRunRequest.STOPPED: Outcome.STOPPED,
}


class ServerAppIO:
    """The rpcs of ServerAppIO."""

    def __init__(
        self, core: Core, drain: Drain, metrics: Metrics, flow: Flow, providers: Sequence[CredentialProvider]
    ) -> None:
        self._core = core
        self._flow = flow
        self._drain = drain
        self._metrics = metrics
        self._providers = providers

    def service(self) -> Service:
        return Service(
            SERVICE,
            "serverappio",
            {
                "Attend": self.attend,
                "GetFab": self.get_fab,
                "StartRunning": self.start_running,
                "GetNodes": self.get_nodes,
                "PushMessages": self.push_messages,
                "PushObjects": self.push_objects,
                "StreamReplies": self.stream_replies,
                "PullObjects": self.pull_objects,
                "ConfirmReceived": self.confirm_received,
                "PushLogs": self.push_logs,
                "PushArtifact": self.push_artifact,
                "FinishRun": self.finish_run,
            },
        )

    async def _executor(self, call: Call) -> Principal:
        token = call.header(TOKEN)
        if not token:
            raise EdgeError(StatusCode.UNAUTHENTICATED, f"The call carries no run token ({TOKEN}).")
        who = await self._core.runs.authenticate(token)
        call.who = who
        call.note(run_id=who.run_id, executor_id=who.id)
        return who

    # ---- attending -------------------------------------------------------------------------------------------------

    async def attend(self, call: Call) -> None:
        """Open for as long as the executor is there; ends with UNAVAILABLE when the SuperLink stops."""
        name = identify(self._providers, call)
        first = await self._report(call)
        if first is None or first.WhichOneof("report") != "hello":
            raise EdgeError(StatusCode.INVALID_ARGUMENT, "The first report of an executor is its hello.")
        hello = first.hello
        if not hello.executor_id:
            raise EdgeError(StatusCode.INVALID_ARGUMENT, "An executor's hello names its executor_id.")
        call.note(executor_id=hello.executor_id)
        call.who = Principal.executor(hello.executor_id, name)
        attendance = await self._core.executors.attend(
            call.who,
            Hello(
                executor_id=hello.executor_id,
                slots=hello.slots,
                version=hello.version,
                guest_flwr_version=hello.guest_flwr_version,
                host=hello.host,
                holding=tuple(hello.holding),
            ),
        )
        reports = asyncio.create_task(self._take_reports(call, attendance))
        orders = asyncio.create_task(self._give_orders(call, attendance))
        try:
            with self._metrics.held("serverappio"):
                done, _ = await asyncio.wait({reports, orders}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (reports, orders):
                task.cancel()
            await asyncio.wait({reports, orders})
            attendance.leave()

    async def _report(self, call: Call) -> appio_pb2.ExecutorReport | None:
        try:
            async with asyncio.timeout(SILENCE):
                data = await call.read()
        except TimeoutError as error:
            raise EdgeError(StatusCode.UNAVAILABLE, f"No sign of life for {SILENCE:g} s; connect again.") from error
        return None if data is None else call.decode(appio_pb2.ExecutorReport, data)

    async def _take_reports(self, call: Call, attendance: Attendance) -> None:
        while (report := await self._report(call)) is not None:
            match report.WhichOneof("report"):
                case "free_slots":
                    attendance.free_slots(report.free_slots)
                case "handed_back":
                    await attendance.handed_back(report.handed_back)
                case "alive":
                    attendance.alive()
                case _:
                    raise EdgeError(StatusCode.INVALID_ARGUMENT, "After its hello an executor sends no other hello.")

    async def _give_orders(self, call: Call, attendance: Attendance) -> None:
        await call.send(appio_pb2.Order(welcome=True))
        async for order in self._drain.until(attendance.orders()):
            await call.send(_order(order))

    # ---- about one run ---------------------------------------------------------------------------------------------

    async def get_fab(self, call: Call) -> None:
        who = await self._executor(call)
        request = await call.request(appio_pb2.GetFabRequest)
        fab = await self._core.runs.fab(who, request.fab_hash)
        call.note(fab_hash=fab.fab_hash)
        async with self._flow.hold(len(fab.content), who.claim):
            await call.send(appio_pb2.GetFabResponse(fab_hash=fab.fab_hash, content=fab.content))

    async def start_running(self, call: Call) -> None:
        who = await self._executor(call)
        await call.request(appio_pb2.StartRunningRequest)
        await self._core.runs.running(who)
        await call.send(appio_pb2.StartRunningResponse())

    async def get_nodes(self, call: Call) -> None:
        who = await self._executor(call)
        await call.request(appio_pb2.GetNodesRequest)
        nodes = await self._core.nodes.available(who)
        await call.send(
            appio_pb2.GetNodesResponse(
                nodes=[appio_pb2.NodeRef(node_id=node.node_id, name=node.name) for node in nodes]
            )
        )

    async def push_messages(self, call: Call) -> None:
        """A parcel that is malformed is refused for itself; the others are taken."""
        who = await self._executor(call)
        request = await call.request(appio_pb2.PushMessagesRequest)
        refusals = [""] * len(request.messages)
        good: list[int] = []
        parcels = []
        for index, message in enumerate(request.messages):
            try:
                parcels.append(convert.parcel_from_appio(message))
                good.append(index)
            except ObjectError as error:
                refusals[index] = str(error)
        pushed = await self._core.mail.push_instructions(who, parcels)
        for index, refusal in zip(good, pushed.refusals, strict=True):
            refusals[index] = refusal
        for refusal in filter(None, refusals):
            _log.warning("Instruction not taken: %s", refusal)
        self._metrics.messages("instruction_in", refusals.count(""))
        await call.send(appio_pb2.PushMessagesResponse(refusals=refusals, missing_objects=pushed.missing))

    async def push_objects(self, call: Call) -> None:
        who = await self._executor(call)
        await parts.take(call, self._flow, who.claim, self._core.objects.receive(who, who.run))

    async def push_artifact(self, call: Call) -> None:
        who = await self._executor(call)
        first = await self._artifact_part(call)
        if first is None or _FILE_NAME.fullmatch(first.name) is None:  # it will be part of a link and of a header
            raise EdgeError(
                StatusCode.INVALID_ARGUMENT,
                "An artifact comes in parts that carry its file name: letters, digits, dots, '-' and '_'.",
            )

        async def parts() -> AsyncIterator[bytes]:
            part: appio_pb2.ArtifactPart | None = first
            while part is not None:
                yield part.data
                async with self._flow.hold(PART, who.claim):
                    part = await self._artifact_part(call)

        artifact = await self._core.artifacts.store(who, first.name, parts())
        _log.info("Artifact kept", extra={"artifact": artifact.name, "bytes": artifact.size})
        await call.send(appio_pb2.PushArtifactResponse())

    async def _artifact_part(self, call: Call) -> appio_pb2.ArtifactPart | None:
        data = await call.read()
        return None if data is None else call.decode(appio_pb2.ArtifactPart, data)

    async def stream_replies(self, call: Call) -> None:
        who = await self._executor(call)
        request = await call.request(appio_pb2.StreamRepliesRequest)
        with self._metrics.held("serverappio"):
            async for reply in self._drain.until(self._core.mail.replies(who, list(request.instruction_ids))):
                self._metrics.messages("reply_out", 1)
                await call.send(
                    appio_pb2.Reply(instruction_id=reply.instruction_id, parcel=convert.parcel_to_appio(reply.parcel))
                )

    async def pull_objects(self, call: Call) -> None:
        who = await self._executor(call)
        request = await call.request(appio_pb2.PullObjectsRequest)
        objects = self._core.objects.stream(who, who.run, list(request.object_ids))
        await parts.hand_out(call, self._flow, who.claim, objects)

    async def confirm_received(self, call: Call) -> None:
        who = await self._executor(call)
        request = await call.request(appio_pb2.ConfirmReceivedRequest)
        await self._core.mail.confirm(who, list(request.message_ids))
        await call.send(appio_pb2.ConfirmReceivedResponse())

    async def push_logs(self, call: Call) -> None:
        who = await self._executor(call)
        request = await call.request(appio_pb2.PushLogsRequest)
        lines = [LogLine(line.timestamp, line.level, line.text) for line in request.lines]
        await self._core.logs.append(who, lines, request.sequence)
        await call.send(appio_pb2.PushLogsResponse())

    async def finish_run(self, call: Call) -> None:
        who = await self._executor(call)
        request = await call.request(appio_pb2.FinishRunRequest)
        outcome = _OUTCOMES.get(request.outcome)
        if outcome is None:
            raise EdgeError(StatusCode.INVALID_ARGUMENT, "FinishRun names an outcome: completed, failed or stopped.")
        state = convert.state_from_appio(request.state) if request.HasField("state") else None
        missing = await self._core.runs.finish(who, outcome, request.reason, state=state)
        await call.send(appio_pb2.FinishRunResponse(missing_objects=missing))


def _order(order: Order) -> appio_pb2.Order:
    match order:
        case Work():
            state = None if order.state is None else convert.state_to_appio(order.state)
            run = convert.run_to_appio(order.run, SUPERLINK_NODE_ID)
            return appio_pb2.Order(work=appio_pb2.Work(token=order.token, run=run, state=state))
        case Stop():
            return appio_pb2.Order(stop=order.token)
        case Drop():
            return appio_pb2.Order(drop=order.token)
