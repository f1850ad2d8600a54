"""What stands before the handlers: replays, failed attempts, and the audit log's lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from edge_world import Executor, Network, StockNode, Wrapped, network, records, refusal
from grpc import StatusCode
from trellis_kit.attempts import ATTEMPTS, WINDOW, Attempts, network_of
from trellis_superlink.core.principals import NO_ACCOUNT
from trellis_superlink.core.service import Core
from trellis_superlink.edges import permissions
from trellis_superlink.edges.control import Control
from trellis_superlink.edges.guard import Guard
from trellis_superlink.edges.links import Links
from trellis_superlink.edges.login import Login
from trellis_superlink.edges.replays import REMEMBERED, Replayed, Replays
from trellis_superlink.edges.rpc import Call, Dispatcher, Drain, Service
from trellis_superlink.edges.rpcs import CONTROL
from trellis_superlink.identity.errors import LoginRefused
from trellis_superlink.metrics import Metrics
from trellis_wire.identity import NodeCredential, sign_headers_grpc, verify_grpc
from trellis_wire.messages import ErrorCode, MessageError, Metadata, error_reply_from_node
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, fleet_pb2, message_pb2, run_pb2

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@asynccontextmanager
async def audited(folder: Path, **changes: Any) -> AsyncIterator[tuple[Network, Callable[[], list[dict[str, Any]]]]]:
    """A network, and the lines of its audit log."""
    path = folder / "audit.jsonl"
    async with network(folder, audit_log=str(path), **changes) as net:
        yield net, lambda: [json.loads(line) for line in path.read_text().splitlines()]


def done(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["event"]["action"], line["status"]) for line in lines]


# ---- replays -----------------------------------------------------------------------------------------------------


async def test_a_signature_is_taken_once(tmp_path: Path) -> None:
    async with audited(tmp_path) as (net, lines):
        node = await net.node()
        signed = sign_headers_grpc(node.key)
        (_, public), time_sent, (_, signature) = signed
        assert isinstance(signature, bytes)
        first, second = decode_dss_signature(signature)
        negated = encode_dss_signature(first, P256_ORDER - second)  # as valid as the other one
        beat = fleet_pb2.SendNodeHeartbeatRequest(node=node.node, heartbeat_interval=30)
        assert (await net.fleet.SendNodeHeartbeat(beat, metadata=signed)).success
        leave = fleet_pb2.UnregisterNodeFleetRequest(node_id=node.node_id)
        for again in (signature, negated):
            copied = [("flwr-public-key-bin", public), time_sent, ("flwr-signature-bin", again)]
            assert verify_grpc(copied)
            # "Come again": a node whose call a proxy repeated signs anew then, and goes on.
            assert (await refusal(net.fleet.UnregisterNode(leave, metadata=copied)))[0] is StatusCode.UNAVAILABLE
        assert await node.heartbeat()
    assert done(lines()).count(("Fleet.UnregisterNode", "denied")) == 2
    assert ("Fleet.UnregisterNode", "completed") not in done(lines())


def test_signatures_are_remembered_for_as_long_as_they_are_good() -> None:
    now = 0.0
    replays = Replays(lambda: now, most=100)
    headers = sign_headers_grpc(StockNode(None).key)
    credential = verify_grpc(headers)
    replays.check(credential)
    for later in (1.0, REMEMBERED, REMEMBERED + 1):
        now = later
        with pytest.raises(Replayed):
            replays.check(credential)
    for number in range(1000):  # what is remembered is bounded
        replays.check(NodeCredential(b"", credential.timestamp, number.to_bytes(16, "big")))
    assert len(replays._now) + len(replays._before) <= 200


# ---- failed attempts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "network_"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1%eth0", "2001:db8::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("unix", "unix"),
    ],
)
def test_whose_attempts_are_counted_together(address: str, network_: str) -> None:
    assert network_of(address) == network_


def test_attempts_are_forgotten_after_a_while() -> None:
    now = 0.0
    attempts = Attempts(lambda: now)
    for _ in range(ATTEMPTS):
        assert not attempts.too_many("10.0.0.1")
        attempts.add("10.0.0.1")
    assert attempts.too_many("10.0.0.1")
    assert not attempts.too_many("10.0.0.2")
    now += WINDOW + 1
    assert not attempts.too_many("10.0.0.1")
    assert attempts.add("10.0.0.1") == 1


async def test_who_guesses_join_tokens_waits(tmp_path: Path) -> None:
    async with audited(tmp_path, join_token="right") as (net, lines):
        right = Executor(net.appio, join_token="right")
        await right.attend()

        async def silent() -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

        guesses = [*(f"guess-{number}" for number in range(ATTEMPTS)), "guess", "right"]
        told = [await net.appio.Attend(silent(), metadata=[("trellis-join-token", one)]).code() for one in guesses]
        assert told == [StatusCode.UNAUTHENTICATED] * ATTEMPTS + [StatusCode.UNAVAILABLE] * 2
        await net.submit()
        assert (await right.work()).run_id  # who is there already goes on, and so do accounts
    assert done(lines()).count(("ServerAppIO.Attend", "denied")) == ATTEMPTS


class Somebody:
    """An exchange with a caller who sends one message."""

    def __init__(self, request: bytes = b"", peer: str = "ipv4:10.0.0.1:99", **headers: str) -> None:
        self._left = [request]
        self._peer = peer
        self._headers = tuple(headers.items())
        self.problem: StatusCode | None = None

    def peer(self) -> str:
        return self._peer

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._headers

    def credential(self) -> NodeCredential:
        return verify_grpc(self._headers)

    async def read(self) -> bytes | None:
        return self._left.pop() if self._left else None

    async def write(self, data: bytes) -> None:
        return None

    async def announce(self, metadata: tuple[tuple[str, str], ...]) -> None:
        return None

    async def refuse(self, service: Service, call: Call, problem: Any) -> None:
        self.problem = problem.status


class NoProvider:
    """Knows no login."""

    async def finish_login(self, device_code: str) -> None:
        raise LoginRefused("This login has expired or never began; log in again.")


async def test_who_guesses_device_codes_waits(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        login = Login(NoProvider())  # type: ignore[arg-type]
        service = _control(net.core, login)
        dispatcher = Dispatcher(Metrics(), Guard())

        async def guess(peer: str) -> StatusCode | None:
            caller = Somebody(control_pb2.GetAuthTokensRequest(device_code="guess").SerializeToString(), peer)
            await dispatcher.serve(service, "GetAuthTokens", caller)
            return caller.problem

        told = [await guess(f"ipv6:[2001:db8::{number:x}]:99") for number in range(1, ATTEMPTS + 6)]
        assert told == [StatusCode.PERMISSION_DENIED] * ATTEMPTS + [StatusCode.UNAVAILABLE] * 5
        assert await guess("ipv4:10.0.0.2:99") is StatusCode.PERMISSION_DENIED


def _control(core: Core, login: Login) -> Service:
    return Control(core, Drain(), Metrics(), Links(b"", lambda: ""), None, login).services()[0]


# ---- the audit log -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True], ids=["fleet", "adapter"])
async def test_nodes_and_executors_have_their_lines(adapter: bool, tmp_path: Path) -> None:
    """Also of the calls that come inside GrpcAdapter."""
    async with audited(tmp_path) as (net, lines):
        node = StockNode(Wrapped(net) if adapter else net.fleet)
        await node.join()
        hosted = await net.running()
        letter = hosted.instruction(node.node_id, records())
        await hosted.push(letter)
        metadata = Metadata.from_edge((await node.pull()).messages_list[0].metadata)
        fab = run_pb2.GetFabRequest(node=node.node, hash_str=hosted.work.run.fab_hash, run_id=hosted.run_id)
        await node.call("GetFab", fab)
        error = MessageError(ErrorCode.INVALID_FAB, "not here")
        refused, _ = error_reply_from_node(metadata, error, now=metadata.created_at + 1)
        answer = fleet_pb2.PushMessagesRequest(
            node=node.node,
            messages_list=[message_pb2.Message(metadata=refused.to_edge(), error=error.to_edge())],
            message_object_trees=[Tree(refused.message_id).to_edge()],
        )
        await node.call("PushMessages", answer)
        await node.call("UnregisterNode", fleet_pb2.UnregisterNodeFleetRequest(node_id=node.node_id))
        with pytest.raises(grpc.aio.AioRpcError):
            await StockNode(node.stub, key=node.key, node_id=node.node_id).heartbeat()
    told = done(lines())
    for action, status in (
        ("Fleet.RegisterNode", "completed"),
        ("Fleet.ActivateNode", "completed"),
        ("ServerAppIO.Attend", "completed"),
        ("Control.StartRun", "started"),
        ("Control.StartRun", "completed"),
        ("Fleet.GetFab", "completed"),
        ("Fleet.PushMessages", "denied"),
        ("Fleet.UnregisterNode", "completed"),
        ("Fleet.SendNodeHeartbeat", "denied"),
    ):
        assert (action, status) in told
    [site] = [line for line in lines() if line["event"]["action"] == "Fleet.PushMessages"]
    assert (site["event"]["run_id"], site["actor"]["actor_id"]) == (hosted.run_id, str(node.node_id))
    assert site["reason"] == "not here"
    assert all(line["permission"] for line in lines())


async def test_that_a_run_is_over_is_no_denial(tmp_path: Path) -> None:
    async with audited(tmp_path) as (net, lines):
        node = await net.node()
        hosted = await net.running()
        letter = hosted.instruction(node.node_id, records())
        await hosted.push(letter)
        await node.pull()
        await net.control.StopRun(control_pb2.StopRunRequest(run_id=hosted.run_id))
        fab = run_pb2.GetFabRequest(node=node.node, hash_str=hosted.work.run.fab_hash, run_id=hosted.run_id)
        for call in (node.pull_object(hosted.run_id, letter.id), hosted.push(letter)):
            assert (await refusal(call))[0] is StatusCode.PERMISSION_DENIED
        assert (await refusal(hosted.call("GetFab", appio_pb2.GetFabRequest(fab_hash=fab.hash_str))))[0] is (
            StatusCode.PERMISSION_DENIED
        )
    assert ("ServerAppIO.GetFab", "failed") in done(lines())
    assert "denied" not in {status for _, status in done(lines())}


async def test_the_lines_of_strangers_are_short_and_few(tmp_path: Path) -> None:
    """Whoever reaches a port could fill the disk with what they are refused, and nothing could be changed then."""
    async with audited(tmp_path) as (net, lines):
        node = await net.node()
        before = len(lines())
        signed = [("flwr-timestamp", "9" * 4000), ("flwr-component-name", "c" * 2000)]
        signed += [("flwr-public-key-bin", b"k"), ("flwr-signature-bin", b"s")]  # type: ignore[list-item]
        pull = fleet_pb2.PullMessagesRequest(node=node.node)
        for _ in range(ATTEMPTS + 10):
            assert (await refusal(net.fleet.PullMessages(pull, metadata=signed)))[0] is StatusCode.UNAUTHENTICATED
        assert await node.heartbeat()
        await node.call("UnregisterNode", fleet_pb2.UnregisterNodeFleetRequest(node_id=node.node_id))
    denied = [line for line in lines()[before:] if line["status"] == "denied"]
    assert len(denied) == ATTEMPTS
    assert "left out" in denied[-1]["reason"]
    assert max(len(json.dumps(line)) for line in denied) < 2000
    assert done(lines())[-1] == ("Fleet.UnregisterNode", "completed")  # those who are known have all of theirs


async def test_nothing_is_changed_that_cannot_be_written_down(tmp_path: Path) -> None:
    async with network(tmp_path, audit_log="/dev/full") as net:
        start = control_pb2.StartRunRequest(fab=run_pb2.Fab(content=net.fab))
        status, text = await refusal(net.control.StartRun(start))
        assert status is StatusCode.UNAVAILABLE
        assert "audit log" in text
        assert await net.core.runs.list(NO_ACCOUNT) == []


def test_each_change_by_an_account_is_among_those_written_down_first() -> None:
    reading = {"ListRuns", "StreamLogs", "StreamRunEvents", "PullArtifacts", "ListNodes"}
    reading |= {"ListRunSeries", "GetRunSeries", "ListRunSeriesEvents", "ListFederations", "ShowFederation"}
    reading |= {"ListInvitations", "ListAutomations"}
    not_here = {
        name for name in permissions.RPCS[CONTROL] if name.endswith(("Automation", "Connector", "Connectors", "OAuth"))
    }
    not_here |= {name for name in permissions.RPCS[CONTROL] if "App" in name}
    login = {"GetLoginDetails", "GetAuthTokens", "RefreshAuthTokens"}
    assert set(permissions.RPCS[CONTROL]) - reading - not_here - login <= permissions.CHANGING
    assert set(permissions.RPCS[CONTROL]) - login <= permissions.NOTED
