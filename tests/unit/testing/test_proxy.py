"""The recording proxy, between a real gRPC server and client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from trellis_kit.federation import free_ports
from trellis_kit.grpc_server import GrpcServer
from trellis_testing.proxy import Exchange, GrpcProxy, Moment
from trellis_wire.pb.edge import control_pb2, control_pb2_grpc

RUN = 7


class Control:
    """Two calls of Flower's Control service, a unary one and a stream."""

    def __init__(self) -> None:
        self.calls = 0
        self.metadata: dict[str, str | bytes] = {}

    async def stop_run(self, request: control_pb2.StopRunRequest, context: Any) -> control_pb2.StopRunResponse:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        if request.run_id != RUN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Run ID not found", (("reason", "unknown"),))
        await context.send_initial_metadata((("token", "new"),))
        return control_pb2.StopRunResponse(success=True)

    async def stream_logs(
        self, request: control_pb2.StreamLogsRequest, context: Any
    ) -> AsyncIterator[control_pb2.StreamLogsResponse]:
        for line in ("one", "two"):
            yield control_pb2.StreamLogsResponse(log_output=line)

    def handler(self) -> Any:
        out = {"response_serializer": lambda message: message.SerializeToString()}
        return grpc.method_handlers_generic_handler(
            "flwr.proto.Control",
            {
                "StopRun": grpc.unary_unary_rpc_method_handler(
                    self.stop_run, control_pb2.StopRunRequest.FromString, **out
                ),
                "StreamLogs": grpc.unary_stream_rpc_method_handler(
                    self.stream_logs, control_pb2.StreamLogsRequest.FromString, **out
                ),
            },
        )


@pytest.fixture
async def control() -> AsyncIterator[tuple[Control, str]]:
    servicer, server = Control(), GrpcServer("control", "127.0.0.1:0", None)
    server.server.add_generic_rpc_handlers((servicer.handler(),))
    await server.start()
    yield servicer, server.bound
    await server.stop(0)


@pytest.fixture
async def proxy(control: tuple[Control, str]) -> AsyncIterator[GrpcProxy]:
    proxy = GrpcProxy(f"127.0.0.1:{free_ports(1)[0]}", control[1])
    await proxy.start()
    yield proxy
    await proxy.stop()


async def test_passes_on_what_goes_through_and_records_it(control: tuple[Control, str], proxy: GrpcProxy) -> None:
    async with grpc.aio.insecure_channel(proxy.listen) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        call = stub.StopRun(control_pb2.StopRunRequest(run_id=RUN), metadata=(("who", "me"), ("key-bin", b"\0\1")))
        assert (await call).success
        assert ("token", "new") in [tuple(entry) for entry in await call.initial_metadata()]
        lines = [item.log_output async for item in stub.StreamLogs(control_pb2.StreamLogsRequest(run_id=RUN))]
    assert lines == ["one", "two"]
    assert control[0].metadata["who"] == "me"
    assert control[0].metadata["key-bin"] == b"\0\1"
    assert [(one.method, one.number) for one in proxy.exchanges] == [
        ("StopRun", 1),
        ("StreamLogs", 1),
        ("StreamLogs", 2),
    ]
    assert control_pb2.StopRunRequest.FromString(proxy.calls("StopRun")[0].request).run_id == RUN


async def test_errors_keep_status_details_and_trailers(proxy: GrpcProxy) -> None:
    async with grpc.aio.insecure_channel(proxy.listen) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control_pb2_grpc.ControlStub(channel).StopRun(control_pb2.StopRunRequest(run_id=RUN + 1))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "Run ID not found"
    trailers: Any = caught.value.trailing_metadata()
    assert dict(trailers)["reason"] == "unknown"


async def test_a_reply_can_be_lost_after_the_server_has_answered(
    control: tuple[Control, str], proxy: GrpcProxy
) -> None:
    async def lose(moment: Moment, exchange: Exchange) -> bool:
        return moment is not Moment.BEFORE_REPLY

    proxy.on_reply = lose
    async with grpc.aio.insecure_channel(proxy.listen) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control_pb2_grpc.ControlStub(channel).StopRun(control_pb2.StopRunRequest(run_id=RUN))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert control[0].calls == 1
