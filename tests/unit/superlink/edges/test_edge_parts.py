"""The small parts of the surfaces: the hand-written codec, the error table, health, metrics, settings."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from edge_world import Network
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from trellis_kit.settings import load
from trellis_superlink.core import errors as core
from trellis_superlink.edges.errors import ANSWERS, FLEET_ANSWERS, translate
from trellis_superlink.edges.raw import Malformed, PulledObject, parse_push_object
from trellis_superlink.edges.rpc import Drain
from trellis_superlink.edges.versions import dialect
from trellis_superlink.settings import STOCK_FLAGS, SuperLinkSettings
from trellis_wire.pb.edge import fleet_pb2, node_pb2

UINT64 = st.integers(min_value=0, max_value=2**64 - 1)


@given(node=UINT64, run=UINT64, object_id=st.text(), content=st.binary(max_size=400), session=st.text())
def test_push_object_is_read_as_protobuf_reads_it(
    node: int, run: int, object_id: str, content: bytes, session: str
) -> None:
    request = fleet_pb2.PushObjectRequest(
        node=node_pb2.Node(node_id=node), run_id=run, object_id=object_id, object_content=content, session_id=session
    )
    parsed = parse_push_object(request.SerializeToString())
    assert (parsed.node_id, parsed.run_id, parsed.object_id, bytes(parsed.content)) == (node, run, object_id, content)


@given(st.binary(max_size=60))
def test_push_object_agrees_with_protobuf_on_any_bytes(data: bytes) -> None:
    try:
        expected = fleet_pb2.PushObjectRequest.FromString(data)
    except Exception:
        return  # stricter or equal is fine, as long as nothing but Malformed comes out
    try:
        parsed = parse_push_object(data)
    except Malformed:
        return
    assert bytes(parsed.content) == expected.object_content
    assert (parsed.node_id, parsed.run_id, parsed.object_id) == (
        expected.node.node_id,
        expected.run_id,
        expected.object_id,
    )


@given(st.binary(min_size=1, max_size=70_000))
def test_pulled_object_is_what_protobuf_writes(content: bytes) -> None:
    expected = fleet_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=content)
    answer = PulledObject(len(content))
    answer.add(content[:7])
    answer.add(memoryview(content)[7:])
    assert fleet_pb2.PullObjectResponse.FromString(answer.message()) == expected


def test_every_error_of_the_core_has_an_answer() -> None:
    kinds = [kind for kind in vars(core).values() if isinstance(kind, type) and issubclass(kind, core.CoreError)]
    for kind in [*kinds, core.TryAgainLater]:
        if kind is not core.CoreError:
            assert translate(kind("why"), ANSWERS) is not None, kind
    assert translate(ValueError("a bug")) is None


def test_only_the_end_of_a_run_is_permission_denied_to_a_node() -> None:
    denied = [kind for kind, answer in FLEET_ANSWERS.items() if answer.status is StatusCode.PERMISSION_DENIED]
    assert denied == [core.RunOver]


@pytest.mark.parametrize(
    ("version", "since"),
    [(None, (1, 21)), ((1, 25), (1, 21)), ((1, 30), (1, 26)), ((1, 36), (1, 33)), ((2, 0), (1, 33))],
)
def test_dialects(version: tuple[int, int] | None, since: tuple[int, int]) -> None:
    assert dialect(version).since == since


async def test_health_on_each_port(net: Network) -> None:
    for channel in net.channels.values():
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_metrics_tell_of_runs_nodes_messages_bytes_and_held_calls(net: Network) -> None:
    node = await net.node()
    await net.submit()
    hosted = await net.running()
    await hosted.push(hosted.instruction(node.node_id))
    await node.pull()
    await net.link.gauge()
    value = net.link.metrics.registry.get_sample_value
    assert value("trellis_runs", {"status": "running"}) == 1
    assert value("trellis_nodes_online") == 1
    assert value("trellis_messages_total", {"kind": "instruction_in"}) == 1
    assert value("trellis_messages_total", {"kind": "instruction_out"}) == 1
    assert (value("trellis_call_bytes_total", {"surface": "serverappio", "direction": "received"}) or 0) > 100
    assert value("trellis_held_calls", {"surface": "serverappio"}) == 1


async def test_readiness_ends_with_the_service(net: Network) -> None:
    assert await net.link.ready() is None
    net.link.drain.begin()
    assert await net.link.ready() is not None


async def test_what_a_held_call_ends_with_is_no_news_when_its_caller_has_gone() -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    held = asyncio.Event()

    async def waits() -> None:
        held.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise core.RunOver("Run is finished") from None

    call = asyncio.create_task(Drain().race(waits()))
    await held.wait()
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    del call
    gc.collect()
    assert unheard == []


def test_stock_command_lines_are_accepted() -> None:
    settings = load(
        SuperLinkSettings,
        prog="trellis-superlink",
        stock_flags=STOCK_FLAGS,
        environ={},
        argv=[
            *("--insecure", "--isolation", "process", "--flwr-dir", "x", "--exec-api-address", "0.0.0.0:1"),
            *("--fleet-api-type", "grpc-rere", "--executor", "a:b", "--simulation", "--log-file", "y"),
            *("--database", ":flwr-in-memory:", "--superexec-auth-secret-file", "z"),
            "--disable-runtime-dependency-installation",
        ],
    )
    assert settings.control_api_address == "0.0.0.0:1"
    assert settings.database_path is None
