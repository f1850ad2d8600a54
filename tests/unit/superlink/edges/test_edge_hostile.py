"""Peers that mean harm, over real connections: what they try is refused, and the others do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from edge_world import Network, StockNode, model, network, records, refusal
from trellis_superlink.edges import rpc
from trellis_wire.identity import generate_key, public_pem, sign_headers_grpc
from trellis_wire.messages import Metadata
from trellis_wire.pb.edge import control_pb2, fleet_pb2, records_pb2


async def _never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def silent_calls(net: Network, method: str, count: int, key: Any = None) -> list[Any]:
    """Calls of Fleet that are opened and never say anything."""
    key = key or generate_key()
    call = net.channels["fleet"].stream_stream(f"/flwr.proto.Fleet/{method}")
    return [call(_never(), metadata=sign_headers_grpc(key)) for _ in range(count)]


async def test_calls_that_say_nothing_do_not_keep_models_out(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        node, hosted = await net.node(), await net.running()
        calls = silent_calls(net, "PushObject", 60)
        letter = hosted.instruction(node.node_id, model(b"y" * 8_000_000), chunk=1 << 22)
        async with asyncio.timeout(30):
            missing = (await hosted.push(letter, inline=False)).missing_objects
            await hosted.send_objects({object_id: letter.objects[object_id] for object_id in missing})
            await node.take(await node.pull())
        for call in calls:
            call.cancel()


async def test_a_call_that_says_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "BODY_SECONDS", 0.2)
    async with network(tmp_path) as net:
        for method in ("PullMessages", "PushObject", "RegisterNode"):
            (call,) = silent_calls(net, method, 1)
            async with asyncio.timeout(10):
                status, details = await refusal(call.read())
            assert status is grpc.StatusCode.UNAVAILABLE
            assert details == f"{method} was not sent within 0.2 s; try again."


@pytest.mark.parametrize(
    "values",
    [
        {"federation": "x" * 100_000},
        {"federation": "\x1b]0;mine\x07\x9b"},
        {"override_config": {f"key{n}": records_pb2.Scalar(sint64=n) for n in range(9_000)}},
        {"override_config": {f"key{n}": records_pb2.Scalar(sint64=n) for n in range(100_000)}},
        {"override_config": {"x" * 100_000: records_pb2.Scalar(sint64=1)}},
    ],
    ids=["long", "controls", "overrides", "many overrides", "long key"],
)
async def test_what_is_quoted_fits_into_headers(tmp_path: Path, values: dict[str, Any]) -> None:
    async with network(tmp_path) as net:
        status, details = await refusal(net.submit(**values))
        assert status is grpc.StatusCode.FAILED_PRECONDITION or status is grpc.StatusCode.INVALID_ARGUMENT
        assert details.isprintable()
        assert 20 < len(details) < 1100


async def test_numbers_that_no_database_holds(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        run_id = await net.submit()
        fields = control_pb2.ListRunsRequest.DESCRIPTOR.fields_by_name
        most = 2**64 - 1 if fields["limit"].type == fields["limit"].TYPE_UINT64 else 2**32 - 1
        assert list((await net.control.ListRuns(control_pb2.ListRunsRequest(limit=most))).run_dict) == [run_id]
        assert not (await net.control.ListRuns(control_pb2.ListRunsRequest(skip=most))).run_dict


async def test_a_nodes_name_can_be_shown(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        for name in ("\x1b[31m", "n" * 201):
            request = control_pb2.RegisterNodeRequest(public_key=public_pem(generate_key()), name=name)
            status, details = await refusal(net.control.RegisterNode(request))
            assert status is grpc.StatusCode.FAILED_PRECONDITION
            assert "printable" in details


async def test_a_pull_that_names_a_million_runs_is_refused_at_once(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        node = await net.node()
        request = fleet_pb2.PullMessagesRequest(node=node.node, trellis_known_runs=range(1, 1_000_001))
        async with asyncio.timeout(20):
            status, _ = await refusal(node.call("PullMessages", request, ("trellis-capabilities", "inline")))
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        run_id = await net.submit()
        known = fleet_pb2.PullMessagesRequest(node=node.node, trellis_known_runs=[run_id, *range(2, 9_000)])
        answer = await node.call("PullMessages", known, ("trellis-capabilities", "inline"))
        assert list(answer.trellis_ended_runs) == list(range(2, 9_000))


async def _reply(net: Network, node: StockNode, hosted: Any, runtime: float) -> None:
    await hosted.push(hosted.instruction(node.node_id))
    metadata = Metadata.from_edge((await node.pull()).messages_list[0].metadata)
    letter = node.reply(metadata, records())
    request = fleet_pb2.PushMessagesRequest(
        node=node.node,
        messages_list=[letter.to_edge()],
        message_object_trees=[letter.tree.to_edge()],
        clientapp_runtime_list=[runtime],
    )
    for object_id in (await node.call("PushMessages", request)).objects_to_push:
        assert await node.push_object(hosted.run_id, object_id, letter.objects[object_id])


async def test_runtimes_that_are_none_do_not_spoil_the_runs_sum(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        node, hosted = await net.node(), await net.running()
        for runtime in (float("inf"), float("nan"), -5.0, 1.5):
            await _reply(net, node, hosted, runtime)
        run = (await net.control.ListRuns(control_pb2.ListRunsRequest(run_id=hosted.run_id))).run_dict[hosted.run_id]
        assert run.clientapp_runtime == 1.5


async def test_an_object_is_taken_for_the_run_that_it_belongs_to(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        node, hosted, other = await net.node(), await net.running(), await net.submit()
        await hosted.push(hosted.instruction(node.node_id))
        metadata = Metadata.from_edge((await node.pull()).messages_list[0].metadata)
        letter = node.reply(metadata, records(200_000))
        for object_id in await node.push(letter):
            status, _ = await refusal(node.push_object(other, object_id, letter.objects[object_id]))
            assert status is grpc.StatusCode.NOT_FOUND  # as for a run that there is not
            assert await node.push_object(hosted.run_id, object_id, letter.objects[object_id])


async def test_apps_of_its_own_executor_do_not_see_what_the_superlink_keeps(tmp_path: Path) -> None:
    async with network(tmp_path, storage_dir=tmp_path / "store") as net:
        argv = net.link._executor()
        hidden = {argv[place + 1] for place, word in enumerate(argv) if word == "--app-hidden"}
        kept = {str(path) for path in tmp_path.iterdir() if path.name.startswith(("superlink.db", "store"))}
        assert kept - {str(tmp_path / "superlink.db.lock")} <= hidden
        assert str(tmp_path / "superlink.db-wal") in hidden
