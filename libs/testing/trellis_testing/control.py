"""A small client of a SuperLink's Control API, and the runs that were submitted through it or by a command line."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from trellis_wire import config as wire_config
from trellis_wire import fab
from trellis_wire.pb.edge import control_pb2, control_pb2_grpc, run_pb2

# Log streams of a killed SuperLink break; the reader comes back.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
_LOOK = 0.1

# Whose layout of NodeInfo is read here, whatever the SuperLink assumes of callers who do not say.
_RELEASE = (("flwr-package-version", "1.36.0"),)


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `completed`, `failed` or `stopped`, the reason, and its log."""

    outcome: str
    reason: str
    log: str


class Control:
    """Calls to host:port, tried again while the SuperLink is away."""

    def __init__(self, address: str, root_certificates: Path | None = None) -> None:
        self.address = address
        self.root_certificates = root_certificates
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.enable_http_proxy", 0),
        ]
        if root_certificates is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates.read_bytes())
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._stub: control_pb2_grpc.ControlAsyncStub = control_pb2_grpc.ControlStub(self._channel)

    async def close(self) -> None:
        await self._channel.close(None)

    async def start_run(self, app: Path, overrides: Mapping[str, wire_config.Scalar] | None = None) -> "RunHandle":
        """Pack the app in this folder and submit it. Not repeated: a second try could start a second run."""
        content = fab.build(app)
        reply = await self._stub.StartRun(
            control_pb2.StartRunRequest(
                fab=run_pb2.Fab(hash_str=fab.fab_hash(content), content=content),
                override_config=wire_config.to_edge(overrides or {}),
            ),
            wait_for_ready=True,
            timeout=60,
        )
        return RunHandle(self, reply.run_id)

    async def run(self, run_id: int) -> run_pb2.Run:
        reply = await self._stub.ListRuns(control_pb2.ListRunsRequest(run_id=run_id), wait_for_ready=True, timeout=30)
        return reply.run_dict[run_id]

    async def nodes(self) -> dict[int, str]:
        """Node ids and what they are: online, offline, ..."""
        reply = await self._stub.ListNodes(
            control_pb2.ListNodesRequest(), metadata=_RELEASE, wait_for_ready=True, timeout=30
        )
        return {node.node_id: node.status for node in reply.nodes_info}

    async def stop_run(self, run_id: int) -> bool:
        return (await self._stub.StopRun(control_pb2.StopRunRequest(run_id=run_id))).success

    async def log(self, run_id: int) -> str:
        """The run's whole log, once the run is over."""
        return "".join([part async for part in self.follow(run_id)])

    async def follow(self, run_id: int) -> AsyncIterator[str]:
        """The run's log in the pieces in which it comes, until the run is over."""
        after = 0.0
        while True:
            try:
                async for part in self._stub.StreamLogs(
                    control_pb2.StreamLogsRequest(run_id=run_id, after_timestamp=after), wait_for_ready=True
                ):
                    after = part.latest_timestamp
                    yield part.log_output
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    raise
                await asyncio.sleep(_LOOK)
            else:
                return


class RunHandle:
    """A run of the federation."""

    def __init__(self, control: Control, run_id: int) -> None:
        self._control = control
        self.run_id = run_id

    async def status(self) -> str:
        """pending, starting, running or finished."""
        return (await self._control.run(self.run_id)).status.status

    async def stop(self) -> bool:
        return await self._control.stop_run(self.run_id)

    def follow(self) -> AsyncIterator[str]:
        """Its log in the pieces in which it comes, until it is over."""
        return self._control.follow(self.run_id)

    async def finished(self) -> RunResult:
        """Wait for its end; the caller bounds the time."""
        log = await self._control.log(self.run_id)  # the stream ends with the run
        while (run := await self._control.run(self.run_id)).status.status != "finished":
            await asyncio.sleep(_LOOK)
        return RunResult(run.status.sub_status, run.status.details, log)
