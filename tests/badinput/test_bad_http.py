"""What no good peer sends to the HTTP edge: all that it may not send over gRPC, and what only HTTP makes possible."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import pytest_asyncio
import test_bad_apps as apps
import test_bad_messages as messages
from badinput_world import Case, World
from edge_world import StockNode, records
from google.protobuf.message import Message
from http_world import PROTOBUF, HttpWorld, Lines, back_to, cost, over_http, request, say, statuses
from trellis_kit.http_channel import path_of
from trellis_wire.identity import generate_key, public_pem, sign_headers_http
from trellis_wire.pb.edge import control_pb2, fleet_pb2, message_pb2, run_pb2
from trellis_wire.pb.edge.fleet_pb2_grpc import FleetStub

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web(world: World) -> AsyncIterator[HttpWorld]:
    async with over_http(world) as made:
        yield made


# ---- what gRPC peers may not send either -----------------------------------------------------------------------------

OVER_GRPC_ONLY = {"a parcel", "a run's token", "a log's run", "a run to stop, by 1.36"}
"""Of executors, a stream, and a release that has no HTTP."""


def of_peers(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.by != "executor_id" and case.name not in OVER_GRPC_ONLY]


NO_PARTS = {"altered, by a node", "cut short, by a node", "headless, by a node", "a log line"}
CASES = {
    f"{kind}: {case.name}": case
    for kind, cases in {
        "oversized": messages.OVERSIZED,
        "object": messages.OBJECTS,
        "tree": messages.TREES,
        "message": messages.MESSAGES,
        "unknown": messages.UNKNOWN,
    }.items()
    for case in of_peers(cases)
    if case.name not in NO_PARTS  # our SuperNodes send parts over gRPC only
}


@pytest.mark.parametrize("name", CASES)
async def test_what_is_refused_over_grpc_is_refused_over_http(web: HttpWorld, name: str) -> None:
    await web.check(CASES[name])


@pytest.mark.parametrize("name", apps.FABS)
async def test_a_bad_fab_starts_no_run(web: HttpWorld, name: str) -> None:
    await apps.test_a_bad_fab_starts_no_run(web, name)


METHODS = [
    (surface, method)
    for surface, method in messages.METHODS
    if surface in ("fleet", "control") and method.startswith("/flwr.proto.")
    if not method.endswith(("CreateNode", "DeleteNode"))  # of 1.20-1.22, before there was HTTP
]


@pytest.mark.parametrize(("surface", "method"), METHODS)
async def test_malformed_and_truncated(web: HttpWorld, surface: str, method: str) -> None:
    await messages.test_malformed_and_truncated(web, surface, method)


# ---- requests that are none ------------------------------------------------------------------------------------------

LIST, PULL = "/v1/control/list-runs", "/v1/fleet/pull-messages"


@pytest.mark.parametrize("kind", ["", "application/json", "text/plain", "application/protobuf2", "*/*", "\xff" * 5000])
async def test_another_content_type(web: HttpWorld, kind: str) -> None:
    before, lines = web.state(), Lines(web.role)
    for path in (LIST, PULL, "/v1/control/stop-run"):
        head = [f"POST {path} HTTP/1.1", "host: here", f"content-type: {kind}", "connection: close"]
        said = await say(web.http, "\r\n".join((*head, "content-length: 2", "", "{}")).encode("latin-1"))
        assert statuses(said) == [415]
        assert b'"code": 1002' in said
    assert web.state() == before
    lines.check(most=3)


PATHS = [
    ("POST", "/", 404),
    ("POST", "/v1", 404),
    ("POST", "/v1/", 404),
    ("POST", "/v1/fleet/", 404),
    ("POST", "/v1/fleet/create-node", 404),
    ("POST", "/v1/fleet/PullMessages", 404),
    ("POST", "/V1/fleet/pull-messages", 404),
    ("POST", "/v1/control/list-runs/", 404),
    ("POST", "//v1/control/list-runs", 404),
    ("POST", "/v1/fleet/../control/list-runs", 404),
    ("POST", "/v1/control/list-runs%00", 404),
    ("POST", "/v1/control/list-runs%0d%0ax:%20y", 404),
    ("POST", "/v1/" + "x" * 15_000, 404),
    ("POST", "/flwr.proto.Fleet/PullMessages", 404),
    ("GET", "/docs", 404),
    ("GET", "/openapi.json", 404),
    ("GET", "/health/", 404),
    ("GET", "/../../../etc/passwd", 404),
    ("POST", "http://elsewhere/v1/control/list-runs", 404),
    *((method, LIST, 405) for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "NONSENSE")),
    ("POST", "/health", 405),
    ("GET", "/v1/artifacts/7/x.zip", 403),
    ("GET", "/v1/artifacts/7/x.zip?expires=9999999999&signature=" + "0" * 64, 403),
    ("GET", "/v1/artifacts/7/x.zip?expires=" + "9" * 5000 + "&signature=0", 403),
    ("GET", "/v1/artifacts/7/x.zip?expires=%D9%A9&signature=%C3%A9", 403),
    ("GET", "/v1/artifacts/7/..%2f..%2fsuperlink.db?expires=9999999999&signature=0", 404),
    ("GET", "/v1/artifacts/seven/x.zip", 422),
    ("GET", "/v1/artifacts/" + "9" * 5000 + "/x.zip", 422),
]


@pytest.mark.parametrize(("method", "path", "status"), PATHS, ids=lambda value: str(value)[:60])
async def test_other_paths_and_methods(web: HttpWorld, method: str, path: str, status: int) -> None:
    before, lines = web.state(), Lines(web.role)
    assert statuses(await say(web.http, request(path, method=method))) == [status]
    assert web.state() == before
    lines.check(most=1)
    await web.honest()


def signatures(web: HttpWorld) -> dict[str, dict[str, str]]:
    key, other = web.node.key, generate_key()
    good, now = sign_headers_http(key), datetime.now(UTC)
    public, moment, signature = sorted(good, key=lambda name: ("key" not in name, "time" not in name))
    signed = base64.b64decode(good[signature])
    return {
        "none": {},
        "of another key": {**good, signature: sign_headers_http(other)[signature]},
        "by an unknown node": sign_headers_http(other),
        "no base64": {**good, signature: "~" * 100},
        "no text": {**good, signature: "\xff\xfe" * 100},
        "cut": {**good, signature: base64.b64encode(signed[:-1]).decode()},
        "of 10 kB": {**good, signature: "A" * 10_000},
        "a key that is none": {**good, public: base64.b64encode(b"key").decode()},
        "an old one": sign_headers_http(key, now - timedelta(days=1)),
        "one of tomorrow": sign_headers_http(key, now + timedelta(days=1)),
        "no time": {**good, moment: "soon"},
        "a time of 5,000 digits": {**good, moment: "9" * 5000},
        "another time": {**good, moment: now.isoformat()},
    }


async def test_signatures_that_prove_nothing(web: HttpWorld) -> None:
    before, lines = web.state(), Lines(web.role)
    body = fleet_pb2.PullMessagesRequest(node=web.node.node).SerializeToString()
    for name, headers in signatures(web).items():
        raw = [f"{one}: {value}" for one, value in headers.items()]
        said = await say(web.http, request(PULL, *raw, body=body))
        assert statuses(said) == [401], name
        assert said.endswith(b'{"detail": "Invalid SuperNode authentication"}'), name
    assert web.state() == before
    lines.check(most=13)
    await web.honest()


async def test_a_body_that_ends_too_early_is_no_body(web: HttpWorld) -> None:
    before, lines, pid = web.state(), Lines(web.role), web.role.pid
    assert pid is not None
    descriptors = cost(pid).descriptors
    body = control_pb2.StopRunRequest(run_id=web.hosted.run_id).SerializeToString()
    longer = f"content-length: {len(body) + 1}"
    chunk = b"%x\r\n%s\r\n" % (len(body), body)
    for _ in range(20):
        await say(web.http, request("/v1/control/stop-run", longer, body=body), end=True)
        await say(web.http, request("/v1/control/stop-run", "transfer-encoding: chunked", body=chunk), end=True)
        await say(web.http, request("/v1/control/stop-run")[:-20], end=True)
    await web.honest()
    await back_to(pid, lambda now: now.descriptors <= descriptors + 2)
    assert web.state() == before
    lines.check(most=0)


@pytest.mark.parametrize("length", [f"content-length: {10**18}", f"content-length: {(32 << 20) * 4}"])
async def test_a_body_that_is_announced_as_too_large(web: HttpWorld, length: str) -> None:
    said = await say(web.http, request(LIST, length))  # and never comes
    assert statuses(said) == [413]
    await web.honest()


async def test_a_request_that_comes_twice_is_answered_twice(web: HttpWorld) -> None:
    listing = f"POST {LIST} HTTP/1.1\r\nhost: here\r\ncontent-type: application/protobuf\r\ncontent-length: 0\r\n\r\n"
    said = await say(web.http, listing.encode() * 20, request(LIST))
    assert statuses(said) == [200] * 21


async def test_old_nodes_with_rest_are_told(web: HttpWorld) -> None:
    lines = Lines(web.role)
    for rpc in ("create-node", "ping", "pull-task-ins", "x" * 10_000):
        said = await say(web.http, request(f"/api/v0/fleet/{rpc}", body=b"\xff" * 1000))
        assert statuses(said) == [501]
        assert b"--rest" in said
    lines.check(most=4)


# ---- garbage ---------------------------------------------------------------------------------------------------------

GARBAGE = 200


async def test_garbage(web: HttpWorld) -> None:
    """Random bytes, and requests with some bytes of them changed."""
    before, lines, pid = web.state(), Lines(web.role), web.role.pid
    assert pid is not None
    chance = random.Random(5)
    good = request(LIST, "x-something: of no meaning", body=control_pb2.ListRunsRequest(limit=1).SerializeToString())
    first = cost(pid)
    for _ in range(GARBAGE):
        said = await say(web.http, chance.randbytes(chance.randrange(1, 3000)) + b"\r\n\r\n")
        assert statuses(said) in ([400], [431])
    for _ in range(GARBAGE):
        # Something follows that ends each head and each body, however long it has become.
        said = await say(web.http, mutated(chance, good) + b"\r\n\r\n" + bytes(65536), end=chance.random() < 0.2)
        assert all(200 <= status < 500 or status in (501, 505) for status in statuses(said)), said
    await web.honest()
    after = await back_to(pid, lambda now: now.descriptors <= first.descriptors + 2)
    assert after.memory < first.memory + 32
    assert web.state() == before
    lines.check(most=3 * GARBAGE)


def mutated(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[place : place + 1] = chance.randbytes(1)
            case 1:
                changed[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 2:
                del changed[place : place + chance.randrange(1, 9)]
            case _:
                changed[place:place] = changed[: chance.randrange(1, 20)]
    return bytes(changed)


def templates(stray: StockNode) -> dict[str, Message]:
    """A message of each rpc, about nothing that anybody needs."""
    node, run, pem = stray.node, 77, public_pem(stray.key)
    letter = message_pb2.Metadata(run_id=run, message_id="0" * 64, src_node_id=stray.node_id, ttl=60.0, group_id="g")
    tree = message_pb2.ObjectTree(object_id="1" * 64, children=[message_pb2.ObjectTree(object_id="2" * 64)])
    pushed = fleet_pb2.PushMessagesRequest(
        messages_list=[message_pb2.Message(metadata=letter)], message_object_trees=[tree]
    )
    fleet: list[Message] = [
        fleet_pb2.ActivateNodeRequest(public_key=pem, heartbeat_interval=30),
        fleet_pb2.RegisterNodeFleetRequest(public_key=pem),
        fleet_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        fleet_pb2.PullMessagesRequest(node=node),
        pushed,
        run_pb2.GetRunRequest(node=node, run_id=run),
        run_pb2.GetFabRequest(node=node, run_id=run, hash_str="3" * 64),
        fleet_pb2.PushObjectRequest(node=node, run_id=run, object_id="4" * 64, object_content=b"ArrayChunk  1\0x"),
        fleet_pb2.PullObjectRequest(node=node, run_id=run, object_id="4" * 64),
        fleet_pb2.ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id="0" * 64),
    ]
    control: list[Message] = [
        control_pb2.StartRunRequest(fab=run_pb2.Fab(content=b"PK" * 50, hash_str="5" * 64), federation="default"),
        control_pb2.StopRunRequest(run_id=run),
        control_pb2.StreamLogsRequest(run_id=run),
        control_pb2.ListRunsRequest(limit=3),
        control_pb2.PullArtifactsRequest(run_id=run),
        control_pb2.RegisterNodeRequest(public_key=b"key"),
        control_pb2.UnregisterNodeRequest(node_id=run),
        control_pb2.ListNodesRequest(),
        control_pb2.ShowFederationRequest(),
    ]
    paths = {"fleet": fleet, "control": control}
    return {
        path_of(
            f"/flwr.proto.{surface.title()}/{type(one).__name__.removesuffix('Request').removesuffix('Fleet')}"
        ): one
        for surface, ones in paths.items()
        for one in ones
    }


async def test_protobuf_that_was_changed(web: HttpWorld) -> None:
    """Random fields, and good messages with some bytes changed: none is an error of ours, none does any harm."""
    lines, pid = Lines(web.role), web.role.pid
    assert pid is not None
    stray = StockNode(FleetStub(web.channels["fleet"]))
    await stray.join()
    first = cost(pid)
    chance = random.Random(7)
    own = fleet_pb2.PullMessagesRequest(node=stray.node).SerializeToString()  # the last one counts

    async def send(path: str, body: bytes) -> None:
        fleet = "/fleet/" in path
        headers = {**PROTOBUF, **(sign_headers_http(stray.key) if fleet else {})}
        try:
            answer = await web.client.post(path, content=body, headers=headers, timeout=httpx.Timeout(60, read=3))
        except httpx.ReadTimeout:
            assert path == PULL  # a good one again: it is held until there is something
            return
        assert answer.status_code < 500 or answer.status_code == 501, (path, body, answer.text)

    for path, message in templates(stray).items():
        data = message.SerializeToString()
        with_node = own if "node" in message.DESCRIPTOR.fields_by_name else b""
        bodies = [mutated(chance, data) + with_node for _ in range(30)]
        bodies += [chance.randbytes(chance.randrange(1, 200)) for _ in range(10)]
        for start in range(0, len(bodies), 10):
            await asyncio.gather(*(send(path, body) for body in bodies[start : start + 10]))
    await web.honest()
    await back_to(pid, lambda now: now.memory < first.memory + 32)
    lines.check(most=1500)
    assert await stray.heartbeat()


async def test_the_same_reply_many_times(web: HttpWorld) -> None:
    """The node has answered this instruction, and says the same again and again, all at once."""
    again = web.done.reply(web.answered.metadata, records(150_000, b"r"))
    before = await web.still()
    results = await asyncio.gather(*(web.done.push(again) for _ in range(20)))
    assert results == [[]] * 20
    assert web.state() == before
