"""A SuperLink's Control API in this process, as scripted as a test needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from trellis_wire.pb.edge import control_pb2 as pb
from trellis_wire.pb.edge.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from trellis_wire.pb.edge.node_pb2 import NodeInfo
from trellis_wire.pb.edge.run_pb2 import Run, RunStatus

Failure = tuple[grpc.StatusCode, str]
RUN_ID = 2**63 + 5  # needs all 64 bits
NOW = "2026-11-24T12:00:30+00:00"


def a_run(status: str = "running", outcome: str = "", details: str = "", run_id: int = RUN_ID, minute: int = 0) -> Run:
    return Run(
        run_id=run_id,
        fab_id="trellis/digits",
        fab_version="1.0.0",
        fab_hash="ab" * 32,
        federation="default",
        status=RunStatus(status=status, sub_status=outcome, details=details),
        pending_at=f"2026-11-24T11:{minute:02}:00+00:00",
        starting_at=f"2026-11-24T11:{minute:02}:01+00:00",
        running_at="2026-11-24T12:00:00+00:00" if status in ("running", "finished") else "",
        finished_at="2026-11-24T12:00:20+00:00" if status == "finished" else "",
        bytes_sent=1000,
        bytes_recv=500,
        clientapp_runtime=1.5,
    )


@dataclass
class FakeControl(ControlServicer):
    """Answers from its fields and writes down what it was asked."""

    runs: list[Run] = field(default_factory=list)
    nodes: list[NodeInfo] = field(default_factory=list)
    started: list[pb.StartRunRequest] = field(default_factory=list)
    refuse: dict[str, Failure] = field(default_factory=dict)  # rpc -> failure
    federations: tuple[str, ...] = ("", "default")  # others get an empty response, as stock 1.24 answers
    log: list[tuple[float, str]] = field(default_factory=list)
    log_calls: list[float] = field(default_factory=list)
    # Called before the n-th StreamLogs: how many entries it delivers before the failure, or None for all.
    cut: Callable[[int], tuple[int, Failure | None] | None] = lambda call: None
    stopped: list[int] = field(default_factory=list)
    now: str = NOW

    def _check(self, rpc: str, context: grpc.ServicerContext) -> None:
        if rpc in self.refuse:
            context.abort(*self.refuse[rpc])

    def StartRun(self, request: pb.StartRunRequest, context: grpc.ServicerContext) -> pb.StartRunResponse:
        self.started.append(request)
        self._check("StartRun", context)
        if request.federation not in self.federations:
            return pb.StartRunResponse()
        return pb.StartRunResponse(run_id=RUN_ID, federation="@none/default")

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsResponse:
        self._check("ListRuns", context)
        chosen = [one for one in self.runs if not request.HasField("run_id") or one.run_id == request.run_id]
        if request.HasField("run_id") and not chosen:
            context.abort(grpc.StatusCode.NOT_FOUND, "Run ID not found")
        return pb.ListRunsResponse(run_dict={one.run_id: one for one in chosen}, now=self.now)

    def StopRun(self, request: pb.StopRunRequest, context: grpc.ServicerContext) -> pb.StopRunResponse:
        self._check("StopRun", context)
        self.stopped.append(request.run_id)
        return pb.StopRunResponse(success=True)

    def PullArtifacts(
        self, request: pb.PullArtifactsRequest, context: grpc.ServicerContext
    ) -> pb.PullArtifactsResponse:
        self._check("PullArtifacts", context)
        return pb.PullArtifactsResponse(url="http://h/1" if request.run_id == RUN_ID else None)

    def ListNodes(self, request: pb.ListNodesRequest, context: grpc.ServicerContext) -> pb.ListNodesResponse:
        return pb.ListNodesResponse(nodes_info=self.nodes, now=self.now)

    def RegisterNode(self, request: pb.RegisterNodeRequest, context: grpc.ServicerContext) -> pb.RegisterNodeResponse:
        self._check("RegisterNode", context)
        return pb.RegisterNodeResponse(node_id=77)

    def StreamLogs(
        self, request: pb.StreamLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamLogsResponse]:
        self._check("StreamLogs", context)
        self.log_calls.append(request.after_timestamp)
        entries = [one for one in self.log if one[0] > request.after_timestamp + 1e-6]
        cut = self.cut(len(self.log_calls))
        for at, text in entries if cut is None else entries[: cut[0]]:
            yield pb.StreamLogsResponse(log_output=text, latest_timestamp=at)
        if cut is not None and cut[1] is not None:
            context.abort(*cut[1])


@dataclass(frozen=True)
class Served:
    """A running FakeControl and its address."""

    control: FakeControl
    address: str


def serve(control: FakeControl) -> Iterator[Served]:
    """A fixture's body: the servicer on a free port of 127.0.0.1."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    add_ControlServicer_to_server(control, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Served(control, f"127.0.0.1:{port}")
    server.stop(None).wait()
