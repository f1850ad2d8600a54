"""The HTTP edge as SuperNodes from 1.40 and command lines from 1.37 use it, and what it says to everybody else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from edge_world import Network
from google.protobuf.message import Message
from trellis_superlink.edges import control, fleet, http
from trellis_wire.identity import generate_key, public_pem, sign_headers_http
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, fleet_pb2, node_pb2, run_pb2

PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


class Peer:
    """A stock peer's side: signed where it is a node."""

    def __init__(self, net: Network) -> None:
        self.client = httpx.AsyncClient(base_url=f"http://{net.link.http.bound}", timeout=20)
        self.key = generate_key("P-384")
        self.node = node_pb2.Node()

    async def post(self, path: str, body: Message | bytes = b"", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else body.SerializeToString(deterministic=True)
        return await self.client.post(f"/v1/{path}", content=content, headers={**PROTOBUF, **headers})

    async def fleet(self, rpc: str, request: Any) -> httpx.Response:
        if request.DESCRIPTOR.fields_by_name.get("node") is not None:
            request.node.CopyFrom(self.node)
        return await self.post(f"fleet/{rpc}", request, **sign_headers_http(self.key))

    async def join(self) -> None:
        public = public_pem(self.key)
        await self.fleet("register-node", fleet_pb2.RegisterNodeFleetRequest(public_key=public))
        answer = await self.fleet(
            "activate-node", fleet_pb2.ActivateNodeRequest(public_key=public, heartbeat_interval=30)
        )
        self.node.node_id = fleet_pb2.ActivateNodeResponse.FromString(answer.content).node_id


@pytest.fixture
async def peer(net: Network) -> AsyncIterator[Peer]:
    peer = Peer(net)
    yield peer
    await peer.client.aclose()


def told(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json()


async def test_health_has_no_body(peer: Peer) -> None:
    for method in ("GET", "HEAD"):
        answer = await peer.client.request(method, "/health")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_a_node_joins_works_and_leaves(net: Network, peer: Peer) -> None:
    await peer.join()
    beat = await peer.fleet("send-node-heartbeat", fleet_pb2.SendNodeHeartbeatRequest(heartbeat_interval=30))
    assert (beat.status_code, beat.headers["content-type"]) == (200, "application/protobuf")
    assert fleet_pb2.SendNodeHeartbeatResponse.FromString(beat.content).success
    held = asyncio.create_task(peer.fleet("pull-messages", fleet_pb2.PullMessagesRequest()))
    hosted = await net.running()
    instruction = hosted.instruction(peer.node.node_id)
    await hosted.push(instruction)
    pulled = fleet_pb2.PullMessagesResponse.FromString((await held).content)
    assert [message.metadata.message_id for message in pulled.messages_list] == [instruction.id]
    found = await peer.fleet("get-run", run_pb2.GetRunRequest(run_id=hosted.run_id))
    assert run_pb2.GetRunResponse.FromString(found.content).run.run_id == hosted.run_id
    await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))
    over = await peer.fleet("get-run", run_pb2.GetRunRequest(run_id=hosted.run_id))
    assert (over.status_code, over.json()["code"]) == (403, 2007)
    assert (await peer.fleet("deactivate-node", fleet_pb2.DeactivateNodeRequest(node_id=peer.node.node_id))).is_success


async def test_an_unsigned_node_is_told_as_stock_tells_it(peer: Peer) -> None:
    answer = await peer.post("fleet/pull-messages", fleet_pb2.PullMessagesRequest())
    assert told(answer) == (401, {"detail": "Invalid SuperNode authentication"})
    assert "www-authenticate" not in answer.headers


async def test_a_held_call_ends_with_its_caller(net: Network, peer: Peer) -> None:
    await peer.join()
    held = asyncio.create_task(peer.fleet("pull-messages", fleet_pb2.PullMessagesRequest()))
    async with asyncio.timeout(20):
        while not net.core.mail.held:
            await asyncio.sleep(0.01)
        held.cancel()
        while net.core.mail.held:
            await asyncio.sleep(0.01)


async def test_logs_are_frames_until_the_run_ends(net: Network, peer: Peer) -> None:
    hosted = await net.running()
    request = control_pb2.StreamLogsRequest(run_id=hosted.run_id).SerializeToString()
    stream = peer.client.stream("POST", "/v1/control/stream-logs", content=request, headers=PROTOBUF)
    lines = [appio_pb2.LogLine(timestamp=time.time(), level="OUT", text="first\n")]
    await hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=lines, sequence=1))
    async with stream as answer:
        assert answer.headers["content-type"] == "application/flower-protobuf-stream"
        body = answer.aiter_raw()
        data = await anext(body)
        await hosted.call("FinishRun", appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED))
        async for more in body:
            data += more
    logged = ""
    while data:
        size, data = int.from_bytes(data[:4], "big"), data[4:]
        logged += control_pb2.StreamLogsResponse.FromString(data[:size]).log_output
        data = data[size:]
    assert logged == "first\n"


async def test_an_unknown_run_has_no_log(peer: Peer) -> None:
    answer = await peer.post("control/stream-logs", control_pb2.StreamLogsRequest(run_id=7))
    assert told(answer) == (404, {"code": 16, "detail": "Run ID not found"})


async def test_what_login_would_need_is_said_and_not_kept(peer: Peer) -> None:
    answer = await peer.post("control/get-login-details", control_pb2.GetLoginDetailsRequest())
    assert (answer.status_code, answer.json()["code"]) == (501, 19)
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")


async def test_known_and_unknown_paths(peer: Peer) -> None:
    known = await peer.post("control/start-automation")
    assert told(known) == (501, {"detail": "This SuperLink has no automations."})
    for path in ("control/nonsense", "fleet/create-node", "nonsense/pull-messages", "fleet/PullMessages"):
        assert told(await peer.post(path)) == (404, {"detail": "There is no such endpoint."})
    assert (await peer.client.get("/v1/control/list-runs")).status_code == 405


async def test_the_rest_transport_of_old_nodes_is_refused_with_a_sentence(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    body = fleet_pb2.CreateNodeRequest(heartbeat_interval=30).SerializeToString()
    answer = await peer.client.post("/api/v0/fleet/create-node", content=body, headers=PROTOBUF)
    assert told(answer) == (501, {"detail": http.NO_REST})
    assert "--rest" in caplog.text


async def test_bodies_that_are_none(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    other = await peer.post("control/list-runs", b"{}", **{"content-type": "application/json"})
    assert (other.status_code, other.json()["code"]) == (415, 1002)
    malformed = await peer.post("control/list-runs", b"\xff\xff\xff")
    assert (malformed.status_code, malformed.json()["code"]) == (400, 1003)
    assert "ListRuns refused" in caplog.text
    assert (await peer.post("control/list-runs")).is_success  # an empty body is a message


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large(peer: Peer, announced: bool) -> None:
    size = control.MAX_REQUEST + 65536

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(size // 65536):
            yield b"x" * 65536

    headers = {**PROTOBUF, **({"content-length": str(size)} if announced else {})}
    answer = await peer.client.post("/v1/control/start-run", content=parts(), headers=headers)
    assert answer.status_code == 413
    assert "at most" in answer.json()["detail"]


async def test_a_body_that_does_not_come(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.3)
    monkeypatch.setattr(http, "LINGER_SECONDS", 0.3)
    host, port = net.link.http.bound.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/control/list-runs HTTP/1.1\r\nhost: here\r\ncontent-type: application/protobuf\r\n"
        b"content-length: 100\r\n\r\nx"
    )
    answer = await asyncio.wait_for(reader.read(), 20)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["detail"].startswith("No byte of the body")
    writer.close()


async def test_two_lengths_are_no_request(net: Network) -> None:
    host, port = net.link.http.bound.rsplit(":", 1)
    lengths = (b"content-length: 0\r\ncontent-length: 40\r\n", b"content-length: 3\r\ntransfer-encoding: chunked\r\n")
    for headers in lengths:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/control/list-runs HTTP/1.1\r\nhost: here\r\ncontent-type: application/protobuf\r\n"
            + headers
            + b"\r\n0\r\n\r\nPOST /v1/control/stop-run HTTP/1.1\r\nhost: here\r\n\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1 ") == 1
        writer.close()


def test_names_of_rpcs() -> None:
    assert http.kebab("ConfirmMessageReceived") == "confirm-message-received"
    assert http.kebab("BeginConnectorOAuth") == "begin-connector-oauth"
    assert fleet.MAX_REQUEST > control.MAX_REQUEST
