"""Control as command lines of Flower 1.21-1.36 use it, and what they are told when it does not work."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from edge_world import Network, make_fab, refusal
from grpc import StatusCode
from trellis_kit.attempts import ATTEMPTS
from trellis_superlink.edges.rpcs import ADAPTER, CONTROL, EXEC, FLEET, RPCS
from trellis_wire.identity import generate_key, public_pem
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, records_pb2, run_pb2

V1_36 = [("flwr-package-name", "flwr"), ("flwr-package-version", "1.36.0"), ("flwr-component-name", "flwr CLI")]


async def log_of(call: Any) -> str:
    return "".join([item.log_output async for item in call])


async def test_a_run_from_submission_to_its_end(net: Network) -> None:
    run_id = await net.submit(federation="default", override_config={"rounds": records_pb2.Scalar(sint64=5)})
    listed = await net.control.ListRuns(control_pb2.ListRunsRequest())
    run = listed.run_dict[run_id]
    assert (run.status.status, run.fab_id, run.fab_version) == ("pending", "somebody/small", "1.2.3")
    assert run.fab_hash == hashlib.sha256(net.fab).hexdigest()
    assert run.override_config["rounds"].sint64 == 5
    assert datetime.fromisoformat(run.pending_at).tzinfo
    assert datetime.fromisoformat(listed.now).tzinfo
    assert not run.running_at
    assert (await net.control.StopRun(control_pb2.StopRunRequest(run_id=run_id))).success
    run = (await net.control.ListRuns(control_pb2.ListRunsRequest(run_id=run_id))).run_dict[run_id]
    assert (run.status.status, run.status.sub_status) == ("finished", "stopped")
    status, _ = await refusal(net.control.StopRun(control_pb2.StopRunRequest(run_id=run_id)))
    assert status is StatusCode.FAILED_PRECONDITION


async def test_runs_are_listed_in_pages(net: Network) -> None:
    ids = [await net.submit() for _ in range(3)]
    page = await net.control.ListRuns(control_pb2.ListRunsRequest(limit=1, skip=1))
    assert list(page.run_dict) == [ids[1]]
    assert len((await net.control.ListRuns(control_pb2.ListRunsRequest())).run_dict) == 3


async def test_logs_are_held_until_the_run_ends(net: Network) -> None:
    hosted = await net.running()
    lines = [appio_pb2.LogLine(timestamp=time.time(), level="OUT", text="first\n")]
    await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=lines, sequence=1))
    await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=lines, sequence=1))
    stream = asyncio.create_task(log_of(net.control.StreamLogs(control_pb2.StreamLogsRequest(run_id=hosted.run_id))))
    await net.held("control")
    assert not stream.done()
    lines[0].text = "second\n"
    await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=lines, sequence=2))
    await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))
    text = await asyncio.wait_for(stream, 5)
    assert text.count("first\n") == 1
    assert text.endswith("second\n")


async def test_a_log_is_taken_up_where_it_was_left(net: Network) -> None:
    hosted = await net.running()
    for number in range(3):
        line = appio_pb2.LogLine(timestamp=time.time(), level="OUT", text=f"line {number}\n")
        await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=[line], sequence=number + 1))
    call = net.control.StreamLogs(control_pb2.StreamLogsRequest(run_id=hosted.run_id))
    first = await call.read()
    assert first.log_output.endswith("line 0\nline 1\nline 2\n")  # --show prints the first item only
    call.cancel()
    await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.FAILED, reason="why"))
    again = control_pb2.StreamLogsRequest(run_id=hosted.run_id, after_timestamp=first.latest_timestamp)
    assert "line" not in await log_of(net.control.StreamLogs(again))


async def test_a_log_line_of_10_mb_is_cut(net: Network) -> None:
    hosted = await net.running()
    line = appio_pb2.LogLine(timestamp=time.time(), level="OUT", text="x" * 10_000_000 + "\n")
    await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=[line], sequence=1))
    await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))
    text = await log_of(net.control.StreamLogs(control_pb2.StreamLogsRequest(run_id=hosted.run_id)))
    assert 1000 < len(text) < 200_000


async def test_unknown_runs_get_the_words_that_command_lines_look_for(net: Network) -> None:
    calls = [
        net.control.StopRun(control_pb2.StopRunRequest(run_id=5)),
        net.control.ListRuns(control_pb2.ListRunsRequest(run_id=5)),
        net.control.PullArtifacts(control_pb2.PullArtifactsRequest(run_id=5)),
        log_of(net.control.StreamLogs(control_pb2.StreamLogsRequest(run_id=5))),
    ]
    for call in calls:
        assert await refusal(call) == (StatusCode.NOT_FOUND, "Run ID not found")


async def test_newer_command_lines_get_a_code(net: Network) -> None:
    status, text = await refusal(net.control.StopRun(control_pb2.StopRunRequest(run_id=5), metadata=V1_36))
    assert status is StatusCode.NOT_FOUND
    told = json.loads(text)
    assert (told["code"], told["public_message"], told["public_details"]) == (16, "Run ID not found", None)


# ---- FABs --------------------------------------------------------------------------------------------------------


def zipped(*members: tuple[str, bytes], compress: bool = True) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "fab",
    [
        pytest.param(b"this is no zip", id="no zip"),
        pytest.param(zipped(("a.py", b"0" * 11_000_000), compress=False), id="over 10 MiB packed"),
        pytest.param(zipped(("a.py", b"0" * 105_000_000)), id="over 100 MiB unpacked"),
        pytest.param(zipped(*((f"{n}.py", b"") for n in range(10_001))), id="over 10,000 members"),
        pytest.param(zipped(("../evil.py", b"")), id="../"),
        pytest.param(zipped(("/etc/evil.py", b"")), id="absolute path"),
        pytest.param(zipped(("a.py", b"")), id="no pyproject.toml"),
    ],
)
async def test_bad_fabs_are_refused(net: Network, fab: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        call = net.control.StartRun(control_pb2.StartRunRequest(fab=run_pb2.Fab(content=fab)))
        status, text = await refusal(call)
    assert status is StatusCode.FAILED_PRECONDITION
    assert len(text) > 20
    assert any(record.getMessage().startswith("StartRun refused") for record in caplog.records)
    assert not (await net.control.ListRuns(control_pb2.ListRunsRequest())).run_dict


async def test_a_fab_with_another_hash_than_was_sent(net: Network) -> None:
    request = control_pb2.StartRunRequest(fab=run_pb2.Fab(content=net.fab, hash_str="0" * 64))
    assert (await refusal(net.control.StartRun(request)))[0] is StatusCode.FAILED_PRECONDITION
    request.fab.hash_str = hashlib.sha256(net.fab).hexdigest()
    assert (await net.control.StartRun(request)).run_id


async def test_hub_apps_unknown_federations_and_unknown_keys(net: Network, tmp_path: Path) -> None:
    hub = control_pb2.StartRunRequest(app_spec="@flwrlabs/quickstart")
    assert "Flower Hub" in (await refusal(net.control.StartRun(hub)))[1]
    fab = run_pb2.Fab(content=make_fab(tmp_path / "other"))
    elsewhere = control_pb2.StartRunRequest(fab=fab, federation="@a/b")
    assert await refusal(net.control.StartRun(elsewhere)) == (
        StatusCode.FAILED_PRECONDITION,
        "Federation '@a/b' does not exist",
    )
    unknown = control_pb2.StartRunRequest(fab=fab, override_config={"nope": records_pb2.Scalar(sint64=5)})
    status, text = await refusal(net.control.StartRun(unknown))
    assert status is StatusCode.FAILED_PRECONDITION
    assert "nope" in text
    for name in ("", "default", "@none/default"):
        assert (await net.control.StartRun(control_pb2.StartRunRequest(fab=fab, federation=name))).run_id


# ---- nodes, federations, login -----------------------------------------------------------------------------------


async def test_nodes_are_registered_listed_and_unregistered(net: Network) -> None:
    key = public_pem(generate_key())
    answer = await net.control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=key, name="site a"))
    again = net.control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=key))
    assert await refusal(again) == (StatusCode.FAILED_PRECONDITION, "Public key already in use")
    node = await net.node()
    listed = {one.node_id: one for one in (await net.control.ListNodes(control_pb2.ListNodesRequest())).nodes_info}
    assert (listed[answer.node_id].status, listed[answer.node_id].name) == ("registered", "site a")
    assert listed[node.node_id].status == "online"
    assert datetime.fromisoformat(listed[node.node_id].registered_at)
    await net.control.UnregisterNode(control_pb2.UnregisterNodeRequest(node_id=answer.node_id))
    gone = net.control.UnregisterNode(control_pb2.UnregisterNodeRequest(node_id=7))
    assert await refusal(gone) == (StatusCode.NOT_FOUND, "Node ID not found for account")
    bad = net.control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=b"no key"))
    assert await refusal(bad) == (StatusCode.FAILED_PRECONDITION, "The provided public key is not valid")


async def test_the_one_federation_has_the_name_that_the_release_knows(net: Network) -> None:
    listed = await net.control.ListFederations(control_pb2.ListFederationsRequest())
    assert [one.name for one in listed.federations] == ["default"]
    listed = await net.control.ListFederations(control_pb2.ListFederationsRequest(), metadata=V1_36)
    assert [one.name for one in listed.federations] == ["@none/default"]
    shown = await net.control.ShowFederation(
        control_pb2.ShowFederationRequest(federation_name="@none/default"), metadata=V1_36
    )
    assert [(one.account.name, one.role) for one in shown.federation.members] == [("none", "owner")]


async def test_what_needs_login_says_so(net: Network) -> None:
    login = "ControlServicer initialized without account authentication"
    assert await refusal(net.control.GetLoginDetails(control_pb2.GetLoginDetailsRequest())) == (
        StatusCode.UNIMPLEMENTED,
        login,
    )
    assert (await refusal(net.control.GetAuthTokens(control_pb2.GetAuthTokensRequest())))[1] == login


async def test_a_federation_from_its_making_to_its_end(net: Network) -> None:
    ours = "@none/ours"
    create = control_pb2.CreateFederationRequest(federation_name="ours", description="three sites")
    assert (await net.control.CreateFederation(create)).federation.name == ours
    status, text = await refusal(net.control.CreateFederation(create, metadata=V1_36))
    assert (status, json.loads(text)["code"]) == (StatusCode.ALREADY_EXISTS, 4)
    node = await net.node()
    await net.control.AddNodeToFederation(
        control_pb2.AddNodeToFederationRequest(federation_name=ours, node_id=node.node_id)
    )
    fab = run_pb2.Fab(content=net.fab)
    started = await net.control.StartRun(control_pb2.StartRunRequest(fab=fab, federation=ours))
    assert started.federation == ours
    listed = await net.control.ListRuns(control_pb2.ListRunsRequest(run_id=started.run_id))
    assert listed.run_dict[started.run_id].federation == ours
    shown = await net.control.ShowFederation(control_pb2.ShowFederationRequest(federation_name=ours), metadata=V1_36)
    assert [one.node_id for one in shown.federation.nodes] == [node.node_id]
    assert [run.run_id for run in shown.federation.runs] == [started.run_id]
    default = await net.control.ShowFederation(control_pb2.ShowFederationRequest(), metadata=V1_36)
    assert not default.federation.nodes
    assert not default.federation.runs
    await net.control.CreateInvitation(
        control_pb2.CreateInvitationRequest(federation_name=ours, invitee_account_name="bob")
    )
    invited = await net.control.ListInvitations(control_pb2.ListInvitationsRequest())
    assert [(one.federation_name, one.invitee.name, one.status) for one in invited.created_invitations] == [
        (ours, "bob", "pending")
    ]
    await net.control.RevokeInvitation(
        control_pb2.RevokeInvitationRequest(federation_name=ours, invitee_account_name="bob")
    )
    accept = net.control.AcceptInvitation(control_pb2.AcceptInvitationRequest(federation_name=ours), metadata=V1_36)
    assert json.loads((await refusal(accept))[1])["code"] == 7
    await net.control.RemoveNodeFromFederation(
        control_pb2.RemoveNodeFromFederationRequest(federation_name=ours, node_id=node.node_id)
    )
    await net.control.ArchiveFederation(control_pb2.ArchiveFederationRequest(federation_name=ours))
    over = net.control.StartRun(control_pb2.StartRunRequest(fab=fab, federation=ours))
    assert await refusal(over) == (StatusCode.FAILED_PRECONDITION, f"Federation '{ours}' does not exist")
    listing = await net.control.ListFederations(control_pb2.ListFederationsRequest(), metadata=V1_36)
    assert [(one.name, one.archived) for one in listing.federations] == [("@none/default", False), (ours, True)]
    simulated = control_pb2.CreateFederationRequest(federation_name="other", simulation=True)
    assert (await refusal(net.control.CreateFederation(simulated)))[0] is StatusCode.UNIMPLEMENTED


PORTS = {CONTROL: "control", EXEC: "control", FLEET: "fleet", ADAPTER: "fleet"}


@pytest.mark.parametrize("service", PORTS)
async def test_every_rpc_is_served_or_refused_as_the_table_says(net: Network, service: str) -> None:
    for method, rpc in RPCS[service].items():
        status, text = await refusal(net.channels[PORTS[service]].unary_unary(f"/{service}/{method}")(b"\xff"))
        if rpc.refusal is None:
            assert "has no method" not in text, method
        else:
            assert (status, text) == (StatusCode.UNIMPLEMENTED, rpc.refusal.text), method
            assert len(text.split()) > 3
    status, text = await refusal(net.channels[PORTS[service]].unary_unary(f"/{service}/Dance")(b""))
    assert (status, text) == (StatusCode.UNIMPLEMENTED, f"{service} has no method 'Dance'.")


async def test_the_exec_service_of_1_20_is_there(net: Network) -> None:
    call = net.channels["control"].unary_unary("/flwr.proto.Exec/ListRuns")
    assert control_pb2.ListRunsResponse.FromString(await call(b"")).now


async def test_log_streams_are_told_to_come_again_when_the_superlink_stops(net: Network) -> None:
    hosted = await net.running()
    stream = asyncio.create_task(log_of(net.control.StreamLogs(control_pb2.StreamLogsRequest(run_id=hosted.run_id))))
    await net.held("control")
    net.link.drain.begin()
    assert (await refusal(stream))[0] is StatusCode.UNAVAILABLE


async def test_a_node_that_is_refused_often_keeps_nobody_from_asking(net: Network) -> None:
    """Behind one address there may be a SuperNode with a wrong key, and people."""
    pull = net.channels["fleet"].unary_unary("/flwr.proto.Fleet/PullMessages")
    for _ in range(ATTEMPTS + 1):
        assert (await refusal(pull(b"")))[0] is StatusCode.UNAUTHENTICATED
    assert (await net.control.ListRuns(control_pb2.ListRunsRequest())).now
