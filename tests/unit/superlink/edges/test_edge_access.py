"""Whose is what: every rpc about a run, on every edge, asked by somebody whose run it is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from edge_world import Network, network, records, refusal
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from trellis_superlink.core.permissions import OF_ACCOUNTS
from trellis_superlink.core.principals import Principal
from trellis_superlink.edges import permissions
from trellis_superlink.edges.guard import Accounts, Guard
from trellis_superlink.edges.http import kebab
from trellis_superlink.edges.rpc import Call, Dispatcher, Service
from trellis_superlink.edges.rpcs import CONTROL, EXEC, RPCS
from trellis_superlink.identity.roles import Roles
from trellis_superlink.metrics import Metrics
from trellis_wire.pb.edge import control_pb2, fleet_pb2, run_pb2

METHODS = control_pb2.DESCRIPTOR.services_by_name["Control"].methods_by_name
OF_A_RUN = {
    name: [field for field in ("run_id", "series_id") if field in method.input_type.fields_by_name]
    for name, method in METHODS.items()
    if {"run_id", "series_id"} & set(method.input_type.fields_by_name)
    and RPCS[CONTROL][name].refusal is None
    and name != "StartRun"  # where a series is named that it might belong to, and each run is its own
}
"""The rpcs of Control that name a run, with the fields that do."""


class ByHeader(Accounts):
    """An account for each role, known by its name alone."""

    async def identify(self, call: Call) -> Principal:
        name, role = call.header("x-name"), call.header("x-role")
        return Principal.account(f"id-{name}", name, Roles.read().of([role]))


def who(name: str, role: str = "trellis-user") -> list[tuple[str, str]]:
    return [("x-name", name), ("x-role", role)]


ALICE, EVE, VIEWER = who("alice"), who("eve"), who("vera", "trellis-viewer")


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Network]:
    async with network(tmp_path) as net:
        net.link._identity.guard._accounts = ByHeader()
        yield net


async def asked(net: Network, service: str, method: str, request: bytes, account: list[tuple[str, str]]) -> StatusCode:
    """How the call ends, read to its end."""
    call = net.channels["control"].unary_stream(f"/{service}/{method}")(request, metadata=account, timeout=20)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return StatusCode.OK


def about(method: str, run_id: int) -> bytes:
    values = dict.fromkeys(OF_A_RUN[method], run_id)
    return bytes(GetMessageClass(METHODS[method].input_type)(**values).SerializeToString())


def test_the_rpcs_about_a_run_are_known() -> None:
    assert {"StopRun", "ListRuns", "StreamLogs", "StreamRunEvents", "PullArtifacts", "GetRunSeries"} <= set(OF_A_RUN)


async def test_anothers_run_does_not_exist(net: Network) -> None:
    start = control_pb2.StartRunRequest(fab=run_pb2.Fab(content=net.fab))
    run_id = (await net.control.StartRun(start, metadata=ALICE)).run_id
    for there in (run_id, run_id + 1):  # no way to tell the one from the other
        for method in OF_A_RUN:
            for service in (CONTROL, EXEC) if method in RPCS[EXEC] else (CONTROL,):
                told = await asked(net, service, method, about(method, there), EVE)
                assert told is StatusCode.NOT_FOUND, (service, method)
            async with httpx.AsyncClient(base_url=f"http://{net.link.http.bound}") as client:
                answer = await client.post(
                    f"/v1/control/{kebab(method)}",
                    content=about(method, there),
                    headers={"content-type": "application/protobuf", **dict(EVE)},
                )
            assert answer.status_code == 404, method
    assert not (await net.control.ListRuns(control_pb2.ListRunsRequest(), metadata=EVE)).run_dict
    assert not (await net.control.ListRunSeries(control_pb2.ListRunSeriesRequest(), metadata=EVE)).entries
    show = control_pb2.ShowFederationRequest(federation_name="default")
    assert not (await net.control.ShowFederation(show, metadata=EVE)).federation.runs
    assert await asked(net, CONTROL, "StopRun", about("StopRun", run_id), VIEWER) is StatusCode.PERMISSION_DENIED
    listed = await net.control.ListRuns(control_pb2.ListRunsRequest(), metadata=VIEWER)
    assert listed.run_dict[run_id].status.status == "pending"
    await net.control.StopRun(control_pb2.StopRunRequest(run_id=run_id), metadata=ALICE)


async def test_a_node_sees_its_own_messages_only(net: Network) -> None:
    net.link._identity.guard._accounts = Everything()
    one, other, outside = [await net.node() for _ in range(3)]
    hosted = await net.running()
    letters = [hosted.instruction(node.node_id, records(150_000, fill)) for node, fill in ((one, b"a"), (other, b"b"))]
    await hosted.push(*letters)
    for node, own in ((one, letters[0]), (other, letters[1])):
        [message] = (await node.pull()).messages_list
        assert message.metadata.message_id == own.id
    for object_id in letters[0].objects:
        assert (await one.pull_object(hosted.run_id, object_id)).object_available
        shared = object_id in letters[1].objects
        assert (await other.pull_object(hosted.run_id, object_id)).object_found is shared
        assert not (await outside.pull_object(hosted.run_id, object_id)).object_found
    asking = run_pb2.GetRunRequest(node=outside.node, run_id=hosted.run_id)
    assert (await refusal(outside.call("GetRun", asking)))[0] is StatusCode.NOT_FOUND
    fab = run_pb2.GetFabRequest(node=outside.node, hash_str=hosted.work.run.fab_hash, run_id=hosted.run_id)
    assert (await refusal(outside.call("GetFab", fab)))[0] is StatusCode.NOT_FOUND
    for key_of in (other, outside):  # a reply in another's name, and to another's instruction
        for sender in (one.node_id, key_of.node_id):
            forged = one.reply(letters[0].metadata, records(), src_node_id=sender)
            push = fleet_pb2.PushMessagesRequest(
                node=key_of.node, messages_list=[forged.to_edge()], message_object_trees=[forged.tree.to_edge()]
            )
            assert not (await key_of.call("PushMessages", push)).objects_to_push
    good = one.reply(letters[0].metadata, records())
    await one.send(good)
    async for reply in hosted.replies(letters[0].id):
        assert reply.parcel.tree.object_id == good.id
        break


class Everything(Accounts):
    async def identify(self, call: Call) -> Principal:
        return Principal.account("id-root", "root", OF_ACCOUNTS)


class Stranger:
    """An exchange over which nothing is sent."""

    status: StatusCode | None = None

    def peer(self) -> str:
        return "ipv4:10.0.0.1:1"

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return ()

    def credential(self) -> Any:
        raise AssertionError

    async def read(self) -> bytes | None:
        return b""

    async def write(self, data: bytes) -> None:
        raise AssertionError("it was answered")

    async def announce(self, metadata: tuple[tuple[str, str], ...]) -> None:
        return None

    async def refuse(self, service: Service, call: Call, problem: Any) -> None:
        self.status = problem.status


async def test_an_rpc_that_is_in_no_list_is_refused_to_everybody() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"secret")

    assert "Dance" not in permissions.RPCS[CONTROL]
    stranger = Stranger()
    service = Service(CONTROL, "control", {"Dance": handler})
    await Dispatcher(Metrics(), Guard(Everything())).serve(service, "Dance", stranger)
    assert stranger.status is StatusCode.PERMISSION_DENIED
