"""What no good SuperNode, executor or command line sends to a SuperLink, over real connections."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from badinput_world import HEADLESS, LARGE, PARENT, PICKLE, SHORT, SMALL, Case, Log, Refused, World
from edge_world import Letter, StockNode, records
from grpc import StatusCode
from trellis_wire.identity import public_pem, sign_headers_grpc
from trellis_wire.objects import object_id
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2, fleet_pb2, message_pb2, node_pb2, run_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = "0" * 64
UNKNOWN_RUN = 5
MALFORMED = Refused(StatusCode.INVALID_ARGUMENT, "malformed or cut off")
TOO_LARGE = Refused(StatusCode.RESOURCE_EXHAUSTED, "")
NOT_FOUND = Refused(StatusCode.NOT_FOUND, "^Run ID not found$")
OVER = Refused(StatusCode.PERMISSION_DENIED, "^Run is finished")
NOT_KNOWN = StatusCode.UNAUTHENTICATED


def refuse(text: str, status: StatusCode = StatusCode.FAILED_PRECONDITION) -> Refused:
    return Refused(status, text)


# ---- bytes that are no message ---------------------------------------------------------------------------------------

BYTES: Mapping[str, bytes] = {
    "no protobuf": b"\xff",
    "a field that is longer than the message": b"\x0a\x05ab",
    "a field of 2 GiB": b"\x22\xff\xff\xff\x7fabc",
    "the end of a group": b"\x0c",
    "a number cut off": b"\x08\x80",
    "a fixed number cut off": b"\x0d\x01",
}
FLEET = "CreateNode DeleteNode RegisterNode ActivateNode DeactivateNode UnregisterNode SendNodeHeartbeat PullMessages"
FLEET += " PushMessages GetRun GetFab PushObject PullObject ConfirmMessageReceived"
CONTROL = "StartRun StopRun StreamLogs ListRuns PullArtifacts RegisterNode UnregisterNode ListNodes ShowFederation"
APPIO = (
    "Attend GetFab StartRunning GetNodes PushMessages PushObjects StreamReplies PullObjects ConfirmReceived PushLogs"
)
APPIO += " PushArtifact FinishRun"
METHODS = [
    *(("fleet", f"/flwr.proto.Fleet/{name}") for name in FLEET.split()),
    *(("control", f"/flwr.proto.Control/{name}") for name in CONTROL.split()),
    *(("appio", f"/trellis.appio.v1.ServerAppIO/{name}") for name in APPIO.split()),
    *(("fleet", f"/trellis.appio.v1.NodeObjects/{name}") for name in ("PullObjects", "PushObjects")),
]


def credentials(world: World, surface: str) -> Any:
    ours = (("trellis-node-id", str(world.node.node_id)), ("trellis-run-id", str(world.hosted.run_id)))
    node = (*sign_headers_grpc(world.node.key), *ours)
    return {"fleet": node, "control": None, "appio": world.hosted.metadata}[surface]


def sending(surface: str, method: str, data: bytes) -> Callable[[World], Awaitable[Any]]:
    return lambda world: world.raw(surface, method, data, credentials(world, surface))


@pytest.mark.parametrize(("surface", "method"), METHODS)
async def test_malformed_and_truncated(world: World, surface: str, method: str) -> None:
    told = f"^{method.rpartition('/')[2]} refused: The .* bytes sent are no"
    for name, data in BYTES.items():
        await world.check(Case(name, sending(surface, method, data), MALFORMED, told))


async def test_good_messages_cut_short(world: World) -> None:
    push = fleet_pb2.PushMessagesRequest(
        node=world.node.node, messages_list=[world.sent.to_edge()], message_object_trees=[world.sent.tree.to_edge()]
    )
    parcels = appio_pb2.PushMessagesRequest(messages=[world.sent.to_appio()])
    start = control_pb2.StartRunRequest(fab=run_pb2.Fab(content=world.fab))
    whole = [
        ("fleet", "/flwr.proto.Fleet/PushMessages", push),
        ("appio", "/trellis.appio.v1.ServerAppIO/PushMessages", parcels),
        ("control", "/flwr.proto.Control/StartRun", start),
    ]
    for surface, method, message in whole:
        data = message.SerializeToString()[:-1]
        await world.check(Case(method, sending(surface, method, data), MALFORMED, "refused: The .* bytes sent are no"))


def nested(levels: int) -> bytes:
    """A PushMessagesRequest with an object tree of so many levels; a parser would have to follow it down."""
    tree = b""
    for _ in range(levels):
        tree = b"\x12" + varint(len(tree)) + tree
    return b"\x1a" + varint(len(tree)) + tree


def varint(value: int) -> bytes:
    head = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return head + varint(value >> 7) if value > 0x7F else head


HUGE = bytes(34 << 20)
OVERSIZED = [
    Case("an object", lambda w: w.node.push_object(1, NOBODY, HUGE), TOO_LARGE, "PushObject refused"),
    Case("a tree of 5,000 levels", lambda w: fleet_raw(w, "PushMessages", nested(5000)), MALFORMED, "PushMessages"),
    Case("a heartbeat", lambda w: fleet_raw(w, "SendNodeHeartbeat", HUGE), TOO_LARGE, "SendNodeHeartbeat refused"),
    Case(
        "a parcel", lambda w: push_raw(w, appio_pb2.Object(object_id=NOBODY, content=HUGE)), TOO_LARGE, "PushMessages"
    ),
    Case("a part", lambda w: part(w, LARGE, data=HUGE), TOO_LARGE, "PushObjects refused: .*too large", "executor_id"),
    Case("a log line", lambda w: log_lines(w, "x" * (34 << 20)), TOO_LARGE, "PushLogs refused"),
]


async def fleet_raw(world: World, method: str, data: bytes) -> Any:
    return await sending("fleet", f"/flwr.proto.Fleet/{method}", data)(world)


async def push_raw(world: World, content: appio_pb2.Object) -> Any:
    parcel = appio_pb2.Parcel(tree=world.sent.tree.to_appio(), objects=[content])
    return await world.hosted.call("PushMessages", appio_pb2.PushMessagesRequest(messages=[parcel]))


async def log_lines(world: World, text: str, sequence: int = 1) -> Any:
    line = appio_pb2.LogLine(timestamp=time.time(), level="OUT", text=f"{text}\n")
    return await world.hosted.call("PushLogs", appio_pb2.PushLogsRequest(lines=[line], sequence=sequence))


@pytest.mark.parametrize("case", OVERSIZED, ids=lambda case: case.name)
async def test_oversized(world: World, case: Case) -> None:
    await world.check(case)


# ---- objects ---------------------------------------------------------------------------------------------------------


async def push(world: World, content: bytes, object_id_: str = "") -> bool:
    """As a stock node pushes an object of the reply that it has announced."""
    return await world.forger.push_object(world.hosted.run_id, object_id_ or object_id(content), content)


async def part(world: World, content: bytes, **changes: Any) -> list[str]:
    """As an executor pushes one, in parts."""
    values = {"object_id": object_id(content), "offset": 0, "size": len(content), "data": content, **changes}
    parts = [appio_pb2.ObjectPart(**values)]
    answer = await world.hosted.stub.PushObjects(iter(parts), metadata=world.hosted.metadata, timeout=60)
    return list(answer.stored)


async def node_part(world: World, content: bytes, **changes: Any) -> list[str]:
    """As a SuperNode of ours pushes an object of the reply that it has announced."""
    values = {"object_id": object_id(content), "offset": 0, "size": len(content), "data": content, **changes}
    data = appio_pb2.ObjectPart(**values).SerializeToString()
    answer = await sending("fleet", "/trellis.appio.v1.NodeObjects/PushObjects", data)(world)
    return list(appio_pb2.PushObjectsResponse.FromString(answer).stored)


IGNORED = "^Object not taken"
OBJECTS = [
    Case("another content than its hash says", lambda w: push(w, b"!", object_id(SMALL)), False, IGNORED, "node_id"),
    Case("a large one, altered", lambda w: push(w, LARGE[:-1] + b"!", object_id(LARGE)), False, IGNORED, "node_id"),
    Case("nothing", lambda w: push(w, b"", object_id(SMALL)), False, IGNORED, "node_id"),
    Case("one that nobody waits for", lambda w: push(w, b"ArrayChunk  1\0x"), False, IGNORED, "node_id"),
    Case("an id that is a path", lambda w: push(w, SMALL, "../../etc/passwd"), False, IGNORED, "node_id"),
    Case("without a head", lambda w: push(w, HEADLESS), refuse("no head"), "no head", "node_id"),
    Case("of an unknown type", lambda w: push(w, PICKLE), refuse("[Tt]ype"), "PushObject refused", "node_id"),
    Case("shorter than its head says", lambda w: push(w, SHORT), refuse("9"), "PushObject refused", "node_id"),
    Case("with children of its own", lambda w: push(w, PARENT), refuse("children"), "other children", "node_id"),
    # From the executor. The objects are those that the node has announced: whoever knows a hash may push its content.
    Case("altered, in parts", lambda w: part(w, LARGE, data=LARGE[:-1] + b"!"), refuse("hash"), "hash", "executor_id"),
    Case("cut short", lambda w: part(w, LARGE, data=LARGE[:1000]), refuse("incomplete"), "incomplete", "executor_id"),
    Case("a gap", lambda w: part(w, LARGE, offset=1), refuse("follow"), "PushObjects refused", "executor_id"),
    Case("more than it says", lambda w: part(w, LARGE, size=99), refuse(""), "PushObjects refused", "executor_id"),
    Case("of no size", lambda w: part(w, LARGE, size=0), refuse("0 bytes"), "PushObjects refused", "executor_id"),
    Case("of 1 TiB", lambda w: part(w, LARGE, size=1 << 40), refuse("bytes"), "PushObjects refused", "executor_id"),
    Case(
        "altered, by a node", lambda w: node_part(w, LARGE, data=LARGE[:-1] + b"!"), refuse("hash"), "hash", "node_id"
    ),
    Case(
        "cut short, by a node", lambda w: node_part(w, LARGE, data=b"good"), refuse("incomplete"), "incomp", "node_id"
    ),
    Case("headless, by a node", lambda w: node_part(w, HEADLESS), refuse("no head"), "no head", "node_id"),
    Case("headless, in one part", lambda w: part(w, HEADLESS), refuse("no head"), "no head", "executor_id"),
    Case("parent, in one part", lambda w: part(w, PARENT), refuse("children"), "other children", "executor_id"),
]


@pytest.mark.parametrize("case", OBJECTS, ids=lambda case: case.name)
async def test_objects_that_are_none(world: World, case: Case) -> None:
    await world.check(case)


# ---- trees -----------------------------------------------------------------------------------------------------------

Tree = message_pb2.ObjectTree


def chain(levels: int) -> Tree:
    tree = Tree(object_id=object_id(b"leaf"))
    for level in range(levels):
        tree = Tree(object_id=object_id(b"%d" % level), children=[tree])
    return tree


async def announce(world: World, letter: Letter | None = None, *trees: Tree) -> list[str]:
    """As a stock node announces a reply."""
    letter = letter or world.node.reply(world.sent.metadata, records())
    request = fleet_pb2.PushMessagesRequest(
        node=world.node.node, messages_list=[letter.to_edge()], message_object_trees=trees or [letter.tree.to_edge()]
    )
    return list((await world.node.call("PushMessages", request)).objects_to_push)


async def under_root(world: World, *children: Tree) -> list[str]:
    letter = world.node.reply(world.sent.metadata, records())
    return await announce(world, letter, Tree(object_id=letter.id, children=children))


async def cyclic(world: World) -> list[str]:
    letter = world.node.reply(world.sent.metadata, records())
    return await announce(world, letter, Tree(object_id=letter.id, children=[Tree(object_id=letter.id)]))


A, B, C = (object_id(letter) for letter in (b"a", b"b", b"c"))
CONTRADICTION = Tree(
    object_id=C,
    children=[Tree(object_id=A, children=[Tree(object_id=B)]), Tree(object_id=B, children=[Tree(object_id=A)])],
)
REFUSED, NO_TREE = "PushMessages refused", refuse("tree|Object|object")
TREES = [
    Case("a cycle", cyclic, NO_TREE, REFUSED, "node_id"),
    Case("a cycle below", lambda w: under_root(w, CONTRADICTION), NO_TREE, REFUSED, "node_id"),
    Case("too deep", lambda w: under_root(w, chain(20)), NO_TREE, REFUSED, "node_id"),
    Case("another message's", lambda w: announce(w, None, Tree(object_id=NOBODY)), NO_TREE, REFUSED, "node_id"),
    Case("an id that is none", lambda w: under_root(w, Tree(object_id="nonsense")), NO_TREE, REFUSED, "node_id"),
    Case("no id", lambda w: announce(w, None, Tree()), NO_TREE, REFUSED, "node_id"),
    Case(
        "other children than are known",
        lambda w: under_root(w, Tree(object_id=w.sent.tree.children[0].object_id)),
        refuse("other children"),
        REFUSED,
        "node_id",
    ),
    Case(
        "two for one message",
        lambda w: announce(w, None, Tree(object_id=A), Tree(object_id=B)),
        refuse("1 messages came with 2 object trees", StatusCode.INVALID_ARGUMENT),
        REFUSED,
        "node_id",
    ),
]


@pytest.mark.parametrize("case", TREES, ids=lambda case: case.name)
async def test_trees_that_are_none(world: World, case: Case) -> None:
    await world.check(case)


# ---- messages --------------------------------------------------------------------------------------------------------


async def reply(world: World, **changes: Any) -> list[str]:
    return await announce(world, world.node.reply(world.sent.metadata, records(), **changes))


async def misleading(world: World) -> list[str]:
    """The message's own object comes along and says something else than its metadata."""
    letter = world.node.reply(world.sent.metadata, records())
    other = world.node.reply(world.sent.metadata, records(), group_id="other")
    message = letter.to_edge()
    message.metadata.group_id = other.metadata.group_id
    request = fleet_pb2.PushMessagesRequest(
        node=world.node.node,
        messages_list=[message],
        message_object_trees=[letter.tree.to_edge()],
        trellis_objects=[fleet_pb2.InlineObject(object_id=i, content=c) for i, c in letter.objects.items()],
    )
    return list((await world.node.call("PushMessages", request)).objects_to_push)


async def second_reply(world: World) -> list[str]:
    return await world.done.push(world.done.reply(world.answered.metadata, records(number=9)))


async def instruct(world: World, node_id: int = 0, **changes: Any) -> str:
    """An instruction from the executor; why it was refused."""
    letter = world.hosted.instruction(node_id or world.node.node_id, records(number=5), **changes)
    return (await world.hosted.push(letter)).refusals[0]


async def why_refused(world: World, parcel: appio_pb2.Parcel) -> str:
    answer = await world.hosted.call("PushMessages", appio_pb2.PushMessagesRequest(messages=[parcel]))
    return str(answer.refusals[0])


async def without_root(world: World) -> str:
    parcel = world.hosted.instruction(world.node.node_id, records(number=6)).to_appio()
    root = parcel.tree.object_id
    kept = [one for one in parcel.objects if one.object_id != root]
    del parcel.objects[:]
    parcel.objects.extend(kept)
    return await why_refused(world, parcel)


async def altered(world: World, index: int) -> str:
    parcel = world.hosted.instruction(world.node.node_id, records(number=7)).to_appio()
    parcel.objects[index].content += b"!"
    return await why_refused(world, parcel)


async def with_a_stranger(world: World) -> str:
    parcel = world.hosted.instruction(world.node.node_id, records(number=8)).to_appio()
    parcel.objects.add(object_id=object_id(SMALL), content=SMALL)
    return await why_refused(world, parcel)


NOT_TAKEN, NOT_SENT, SOMETHING = "^Reply not taken: ", "^Instruction not taken: ", re.compile(".")
MESSAGES = [
    Case("to nothing", lambda w: reply(w, reply_to_message_id=NOBODY), [], NOT_TAKEN + ".*not exist", "node_id"),
    Case("to no message", lambda w: reply(w, reply_to_message_id=""), [], NOT_TAKEN, "node_id"),
    Case("in an unknown run", lambda w: reply(w, run_id=UNKNOWN_RUN), [], NOT_TAKEN, "node_id"),
    Case("in a run that is over", lambda w: reply(w, run_id=w.ended), [], NOT_TAKEN, "node_id"),
    Case("to a node", lambda w: reply(w, dst_node_id=w.done.node_id), [], NOT_TAKEN, "node_id"),
    Case("in another's name", lambda w: reply(w, src_node_id=w.done.node_id), [], NOT_TAKEN, "node_id"),
    Case("outliving its instruction", lambda w: reply(w, ttl=7200.0 * 24), [], NOT_TAKEN, "node_id"),
    Case("that has expired", lambda w: reply(w, created_at=1.8e9 - 86400, ttl=1.0), [], NOT_TAKEN, "node_id"),
    Case("from before Flower", lambda w: reply(w, created_at=1.0, ttl=1e10), [], NOT_TAKEN, "node_id"),
    Case("without a type", lambda w: reply(w, message_type=""), [], NOT_TAKEN, "node_id"),
    Case("in a stranger's place", lambda w: w.done.push(w.done.reply(w.sent.metadata, {})), [], NOT_TAKEN, "node_id"),
    Case("a second one", second_reply, [], NOT_TAKEN + ".*answered already", "node_id"),
    Case("other metadata than its object", misleading, [], NOT_TAKEN + ".*own object", "node_id"),
    Case("to an unknown node", lambda w: instruct(w, 12345), SOMETHING, NOT_SENT + ".*this run", "executor_id"),
    Case("to the SuperLink", lambda w: instruct(w, 1), SOMETHING, NOT_SENT, "executor_id"),
    Case("for another run", lambda w: instruct(w, run_id=UNKNOWN_RUN), SOMETHING, NOT_SENT + ".*run", "executor_id"),
    Case("expired", lambda w: instruct(w, created_at=time.time() - 99, ttl=9.0), SOMETHING, NOT_SENT, "executor_id"),
    Case("rootless", without_root, SOMETHING, NOT_SENT + ".*Message object", "executor_id"),
    Case("an object altered", lambda w: altered(w, 0), SOMETHING, NOT_SENT, "executor_id"),
    Case("its own object altered", lambda w: altered(w, -1), SOMETHING, NOT_SENT, "executor_id"),
    Case("with a stranger's object", with_a_stranger, SOMETHING, NOT_SENT + ".*no message", "executor_id"),
]


@pytest.mark.parametrize("case", MESSAGES, ids=lambda case: case.name)
async def test_messages_that_break_a_rule(world: World, case: Case) -> None:
    await world.check(case)


# ---- runs, nodes and objects that are not there ----------------------------------------------------------------------


def get_run(world: World, run_id: int) -> Any:
    return world.node.call("GetRun", run_pb2.GetRunRequest(node=world.node.node, run_id=run_id))


def get_fab(world: World, fab_hash: str, run_id: int) -> Any:
    return world.node.call("GetFab", run_pb2.GetFabRequest(node=world.node.node, hash_str=fab_hash, run_id=run_id))


async def logs(world: World, run_id: int) -> Any:
    return await world.control.StreamLogs(control_pb2.StreamLogsRequest(run_id=run_id)).read()


async def found(world: World, run_id: int, object_id_: str) -> bool:
    return bool((await world.node.pull_object(run_id, object_id_)).object_found)


def masked(world: World, node_id: int) -> Any:
    """A node that speaks with its own key for another's id."""
    return StockNode(world.fleet, key=world.done.key, node_id=node_id).call(
        "PullMessages", fleet_pb2.PullMessagesRequest(node=node_pb2.Node(node_id=node_id))
    )


def with_token(world: World, token: str) -> Any:
    return world.hosted.stub.GetNodes(appio_pb2.GetNodesRequest(), metadata=[("trellis-token", token)])


def unregister(world: World) -> Any:
    return world.control.UnregisterNode(control_pb2.UnregisterNodeRequest(node_id=12345))


def register(world: World, key: bytes) -> Any:
    return world.control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=key))


V1_36 = [("flwr-package-name", "flwr"), ("flwr-package-version", "1.36.0"), ("flwr-component-name", "flwr CLI")]


def stop(world: World, run_id: int, metadata: Any = None) -> Any:
    return world.control.StopRun(control_pb2.StopRunRequest(run_id=run_id), metadata=metadata)


UNKNOWN = [
    Case("a node's run", lambda w: get_run(w, UNKNOWN_RUN), NOT_FOUND, "GetRun refused", "node_id"),
    Case(
        "a node's FAB", lambda w: get_fab(w, NOBODY, UNKNOWN_RUN), refuse("", StatusCode.NOT_FOUND), "GetFab", "node_id"
    ),
    Case("a FAB of no run", lambda w: get_fab(w, NOBODY, 0), refuse("", StatusCode.NOT_FOUND), "GetFab", "node_id"),
    Case("an object's run", lambda w: found(w, UNKNOWN_RUN, NOBODY), NOT_FOUND, "PullObject", "node_id"),
    Case("an object", lambda w: found(w, w.hosted.run_id, NOBODY), False, "Object not handed out", "node_id"),
    Case("another's object", lambda w: found(w, w.hosted.run_id, w.forged.id), False, "not handed out", "node_id"),
    Case(
        "the run of an object that is pushed",
        lambda w: w.node.push_object(UNKNOWN_RUN, object_id(SMALL), SMALL),
        NOT_FOUND,
        "PushObject refused",
        "node_id",
    ),
    Case("a run of others", lambda w: get_run(w, w.ended), NOT_FOUND, "GetRun refused", "node_id"),
    Case("an object of a run that is over", lambda w: found(w, w.ended, NOBODY), OVER, "PullObject refused", "node_id"),
    Case("a run to stop", lambda w: stop(w, UNKNOWN_RUN), NOT_FOUND, "StopRun refused"),
    Case(
        "a run to stop, by 1.36",
        lambda w: stop(w, UNKNOWN_RUN, V1_36),
        refuse('"code": 16, "public_message": "Run ID not found"', StatusCode.NOT_FOUND),
        "StopRun refused",
    ),
    Case("a run to stop that is over", lambda w: stop(w, w.ended), refuse("finished|ended"), "StopRun refused"),
    Case("a log's run", lambda w: logs(w, UNKNOWN_RUN), NOT_FOUND, "StreamLogs refused"),
    Case(
        "a listed run",
        lambda w: w.control.ListRuns(control_pb2.ListRunsRequest(run_id=UNKNOWN_RUN)),
        NOT_FOUND,
        "ListRuns refused",
    ),
    Case(
        "a node to unregister",
        unregister,
        refuse("^Node ID not found for account$", StatusCode.NOT_FOUND),
        "UnregisterNode refused",
    ),
    Case(
        "a key that is none",
        lambda w: register(w, b"key"),
        refuse("^The provided public key is not valid$"),
        "Register",
    ),
    Case(
        "a key that is in use",
        lambda w: register(w, public_pem(w.node.key)),
        refuse("^Public key already in use$"),
        "RegisterNode refused",
    ),
    Case("a node without an id", lambda w: masked(w, 0), refuse("^Invalid node ID$", NOT_KNOWN), "PullMessages"),
    Case("another node's id", lambda w: masked(w, w.node.node_id), refuse("", NOT_KNOWN), "PullMessages", "node_id"),
    Case(
        "no signature",
        lambda w: w.fleet.PullMessages(fleet_pb2.PullMessagesRequest(node=w.node.node)),
        refuse("^Missing authentication metadata$", NOT_KNOWN),
        "PullMessages refused",
    ),
    Case("a run's token", lambda w: with_token(w, "guess"), refuse("", NOT_KNOWN), "GetNodes refused"),
]


@pytest.mark.parametrize("case", UNKNOWN, ids=lambda case: case.name)
async def test_what_is_not_there(world: World, case: Case) -> None:
    await world.check(case)


# ---- log lines -------------------------------------------------------------------------------------------------------


async def test_a_log_line_of_10_mb_is_cut_and_told_of(world: World) -> None:
    log, before = Log(world.role), world.state()
    await log_lines(world, "y" * 10_000_000)
    await log.line("cut: it has 10000001 characters", "peer", "executor_id", "run_id")
    after = world.state()
    (kept,) = set(after.pop("logs")) - set(before.pop("logs"))
    assert "y" * 60_000 in kept
    assert "cut here" in kept
    assert len(kept) < 70_000
    assert after.pop("log_cursors") != before.pop("log_cursors")
    assert after == before
