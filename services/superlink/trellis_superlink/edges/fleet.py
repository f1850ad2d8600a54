"""Fleet over gRPC: SuperNodes of Flower 1.20-1.39, both life cycles, and our own SuperNode."""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict

from grpc import StatusCode
from trellis_kit import logs
from trellis_wire.identity import NodeCredential, parse_public_key, public_pem
from trellis_wire.messages import ErrorCode
from trellis_wire.pb.edge import fleet_pb2, node_pb2, run_pb2

from trellis_superlink.core.errors import RunOver
from trellis_superlink.core.objects import Found
from trellis_superlink.core.parcels import INLINE_ANSWER
from trellis_superlink.core.principals import Principal
from trellis_superlink.core.runs import Status
from trellis_superlink.core.service import Core
from trellis_superlink.edges import convert
from trellis_superlink.edges.errors import FLEET_ANSWERS, EdgeError
from trellis_superlink.edges.flow import Flow
from trellis_superlink.edges.raw import Malformed, PulledObject, PushObject, parse_push_object
from trellis_superlink.edges.rpc import Call, Drain, Service, malformed
from trellis_superlink.edges.rpcs import FLEET
from trellis_superlink.metrics import Metrics

_log = logging.getLogger(__name__)

MAX_REQUEST = 32 * 1024 * 1024
"""Bytes of one request: an object of 20 MiB, the largest that any stock node sends, with room to spare."""

HOLD = 25.0
"""Seconds that PullMessages stays open without news: stock HTTP nodes give up after 30 s, proxies cut at 60 s."""
HOLD_JITTER = 3.0

MAX_NAMED = 10_000
"""Runs, and instructions, that a pull of our own SuperNode may name as known; it works for a handful."""

CAPABILITIES = "trellis-capabilities"
INLINE = "inline"
OBJECTS = "objects"
"""NodeObjects is served on this port."""

_LARGE_CHUNK = 20 * 1024 * 1024 + 64 * 1024  # Flower 1.20-1.22
_CHUNK = 5 * 1024 * 1024 + 64 * 1024  # 1.23 on
_REMEMBERED_NODES = 10_000


class Fleet:
    """The rpcs of Fleet. A node's key must be that of the node id it names; that is the core's to say."""

    def __init__(self, core: Core, drain: Drain, metrics: Metrics, flow: Flow) -> None:
        self._core = core
        self._flow = flow
        self._drain = drain
        self._metrics = metrics
        # What is set aside for an object before its size is known; a hint only, so it may be forgotten.
        self._chunks: OrderedDict[bytes, int] = OrderedDict()

    def service(self) -> Service:
        return Service(
            FLEET,
            "fleet",
            {
                "CreateNode": self.create_node,
                "DeleteNode": self.delete_node,
                "RegisterNode": self.register_node,
                "ActivateNode": self.activate_node,
                "DeactivateNode": self.deactivate_node,
                "UnregisterNode": self.unregister_node,
                "SendNodeHeartbeat": self.heartbeat,
                "PullMessages": self.pull_messages,
                "PushMessages": self.push_messages,
                "GetRun": self.get_run,
                "GetFab": self.get_fab,
                "PushObject": self.push_object,
                "PullObject": self.pull_object,
                "ConfirmMessageReceived": self.confirm,
            },
            answers=FLEET_ANSWERS,
            unexpected=unexpected,
        )

    # ---- who asks ------------------------------------------------------------------------------------------------

    async def _node(self, call: Call, node_id: int) -> Principal:
        credential = call.credential()
        call.note(node_id=node_id)
        if node_id == 0:
            raise EdgeError(StatusCode.UNAUTHENTICATED, "Invalid node ID")
        call.who = await self._core.nodes.authenticate(node_id, credential.public_key)
        return call.who

    def _expect(self, key: bytes, chunk: int) -> None:
        self._chunks[key] = chunk
        self._chunks.move_to_end(key)
        if len(self._chunks) > _REMEMBERED_NODES:
            self._chunks.popitem(last=False)

    # ---- life cycle of 1.20-1.22 -----------------------------------------------------------------------------------

    async def create_node(self, call: Call) -> None:
        request = await call.request(fleet_pb2.CreateNodeRequest)
        key = call.credential().public_key
        node_id = await self._core.nodes.create(key, request.heartbeat_interval)
        call.who = Principal.node(node_id)
        self._expect(key, _LARGE_CHUNK)
        await call.send(fleet_pb2.CreateNodeResponse(node=node_pb2.Node(node_id=node_id)))

    async def delete_node(self, call: Call) -> None:
        request = await call.request(fleet_pb2.DeleteNodeRequest)
        who = await self._node(call, request.node.node_id)
        await self._core.nodes.delete(who)
        await call.send(fleet_pb2.DeleteNodeResponse())

    # ---- life cycle of 1.23 on -------------------------------------------------------------------------------------

    async def register_node(self, call: Call) -> None:
        request = await call.request(fleet_pb2.RegisterNodeFleetRequest)
        node_id = await self._core.nodes.register(_own_key(call, request.public_key).public_key)
        call.who = Principal.node(node_id)
        await call.send(fleet_pb2.RegisterNodeFleetResponse(node_id=node_id))

    async def activate_node(self, call: Call) -> None:
        request = await call.request(fleet_pb2.ActivateNodeRequest)
        key = _own_key(call, request.public_key).public_key
        node_id = await self._core.nodes.activate(key, request.heartbeat_interval)
        call.who = Principal.node(node_id)
        self._expect(key, _CHUNK)
        await call.send(fleet_pb2.ActivateNodeResponse(node_id=node_id))

    async def deactivate_node(self, call: Call) -> None:
        request = await call.request(fleet_pb2.DeactivateNodeRequest)
        await self._core.nodes.deactivate(await self._node(call, request.node_id))
        await call.send(fleet_pb2.DeactivateNodeResponse())

    async def unregister_node(self, call: Call) -> None:
        request = await call.request(fleet_pb2.UnregisterNodeFleetRequest)
        who = await self._node(call, request.node_id)
        await self._core.nodes.unregister(who, request.node_id)
        await call.send(fleet_pb2.UnregisterNodeFleetResponse())

    async def heartbeat(self, call: Call) -> None:
        """Never answers success=false: a stock node's heartbeat thread dies of it (WIRE.md 2.5)."""
        request = await call.request(fleet_pb2.SendNodeHeartbeatRequest)
        who = await self._node(call, request.node.node_id)
        self._core.nodes.heartbeat(who, request.heartbeat_interval)
        await call.send(fleet_pb2.SendNodeHeartbeatResponse(success=True))

    # ---- messages --------------------------------------------------------------------------------------------------

    async def pull_messages(self, call: Call) -> None:
        """Held until there is news. An instruction whose answer does not reach the node is delivered again by the core:
        the node's next pull comes while it is unanswered, and a node that can work on several says which it has."""
        request = await call.request(fleet_pb2.PullMessagesRequest)
        who = await self._node(call, request.node.node_id)
        ours = INLINE in call.header(CAPABILITIES)
        if max(len(request.trellis_known_runs), len(request.trellis_working_on)) > MAX_NAMED:
            raise EdgeError(
                StatusCode.INVALID_ARGUMENT, f"A pull names {MAX_NAMED:,} runs and instructions each at most."
            )
        if ours:
            await call.announce((CAPABILITIES, f"{INLINE},{OBJECTS}"))
        ended = await self._core.runs.ended(who, list(request.trellis_known_runs)) if ours else []
        hold = 0.0 if ended or self._drain.begun else HOLD - random.uniform(0, HOLD_JITTER)
        with self._metrics.held("fleet"):
            parcels = await self._drain.race(
                self._core.mail.wait_for_instructions(
                    who,
                    limit=max(1, request.trellis_capacity) if ours else 1,
                    working_on=set(request.trellis_working_on) if ours else (),
                    timeout=hold,
                    inline=INLINE_ANSWER if ours else 0,
                )
            )
        answer = fleet_pb2.PullMessagesResponse(trellis_ended_runs=ended)
        for parcel in parcels or ():
            message, tree = convert.parcel_to_edge(parcel)
            answer.messages_list.append(message)
            answer.message_object_trees.append(tree)
            answer.trellis_objects.extend(
                fleet_pb2.InlineObject(object_id=oid, content=content) for oid, content in parcel.objects.items()
            )
            _log.info(
                "Instruction handed to the node",
                extra={"run_id": parcel.metadata.run_id, "message_id": parcel.metadata.message_id},
            )
        self._metrics.messages("instruction_out", len(answer.messages_list))
        await call.send(answer)

    async def push_messages(self, call: Call) -> None:
        """Refusals are told to our log only: no stock node reads them (WIRE.md 2.7)."""
        request = await call.request(fleet_pb2.PushMessagesRequest)
        who = await self._node(call, request.node.node_id)
        if len(request.messages_list) != len(request.message_object_trees):
            raise EdgeError(
                StatusCode.INVALID_ARGUMENT,
                f"{len(request.messages_list)} messages came with {len(request.message_object_trees)} object trees.",
            )
        inline = convert.inline_from_edge(request.trellis_objects)
        runtimes = list(request.clientapp_runtime_list)
        missing: dict[str, None] = {}
        results: dict[str, int] = {}
        for index, (message, tree) in enumerate(zip(request.messages_list, request.message_object_trees, strict=True)):
            parcel = convert.parcel_from_edge(message, tree, inline)
            with logs.bound(run_id=parcel.metadata.run_id, message_id=parcel.metadata.message_id):
                runtime = _seconds(runtimes[index]) if index < len(runtimes) else None
                pushed = await self._core.mail.push_reply(who, parcel, runtime=runtime)
                for refusal in filter(None, pushed.refusals):
                    _log.warning("Reply not taken: %s", refusal)
                if not any(pushed.refusals):
                    self._metrics.messages("reply_in", 1)
                    _log.info("Reply taken", extra={"objects_to_come": len(pushed.missing)})
                    if parcel.error is not None and parcel.error.code == ErrorCode.INVALID_FAB:
                        call.note(run_id=parcel.metadata.run_id, refused_by_site=parcel.error.reason)
            missing.update(dict.fromkeys(pushed.missing))
            results[parcel.metadata.message_id] = 0
        await call.send(fleet_pb2.PushMessagesResponse(results=results, objects_to_push=list(missing)))

    async def confirm(self, call: Call) -> None:
        request = await call.request(fleet_pb2.ConfirmMessageReceivedRequest)
        who = await self._node(call, request.node.node_id)
        call.note(run_id=request.run_id)
        await self._core.mail.confirm(who, [request.message_object_id])
        await call.send(fleet_pb2.ConfirmMessageReceivedResponse())

    # ---- runs ------------------------------------------------------------------------------------------------------

    async def get_run(self, call: Call) -> None:
        request = await call.request(run_pb2.GetRunRequest)
        who = await self._node(call, request.node.node_id)
        call.note(run_id=request.run_id)
        run = await self._core.runs.get(who, request.run_id)
        if run.status is Status.FINISHED:
            raise RunOver(f"Run is finished. {run.details}".strip())
        await call.send(run_pb2.GetRunResponse(run=convert.run_to_edge(run, run.federation)))

    async def get_fab(self, call: Call) -> None:
        request = await call.request(run_pb2.GetFabRequest)
        who = await self._node(call, request.node.node_id)
        call.note(run_id=request.run_id)
        fab = await self._core.runs.fab(who, request.hash_str, request.run_id)
        call.note(fab_hash=fab.fab_hash)
        answer = run_pb2.GetFabResponse(fab=convert.fab_to_edge(fab))
        async with self._flow.hold(len(fab.content), who.id):
            await call.send(answer)

    # ---- objects ---------------------------------------------------------------------------------------------------

    async def push_object(self, call: Call) -> None:
        """The body is taken from the connection once there is memory for it.

        `stored: false` is what stock answers for an object that nobody waits for or whose hash is wrong. Nodes before
        1.24 swallow it; nothing is lost by that here, because the instruction stays unanswered and is delivered again
        at their next pull.
        """
        credential = call.credential()
        async with self._flow.hold(self.chunk(call, credential), credential.public_key):
            await self.take_object(call)

    async def take_object(self, call: Call) -> None:
        """PushObject, where there is memory for the body already."""
        stored = await self._store(call, _push_object(await call.body()))
        await call.send(fleet_pb2.PushObjectResponse(stored=stored))

    async def _store(self, call: Call, request: PushObject) -> bool:
        """Nothing outside refers to the content any more when this returns."""
        who = await self._node(call, request.node_id)
        call.note(run_id=request.run_id, object_id=request.object_id)
        stored = await self._core.objects.store(who, request.run_id, request.object_id, request.content)
        if not stored:
            _log.warning("Object not taken: no message waits for it, or its hash is wrong")
        return stored

    def chunk(self, call: Call, credential: NodeCredential) -> int:
        """Bytes to set aside: 1.30 and later say who they are, the others by how they joined."""
        known = self._chunks.get(credential.public_key)
        return known or (_CHUNK if call.version is not None else _LARGE_CHUNK)

    async def pull_object(self, call: Call) -> None:
        request = await call.request(fleet_pb2.PullObjectRequest)
        who = await self._node(call, request.node.node_id)
        call.note(run_id=request.run_id, object_id=request.object_id)
        found = await self._core.objects.find(who, request.run_id, request.object_id)
        if found is None:
            _log.warning("Object not handed out: no message that the node may see has it")
        if found is None or not found.available:
            await call.send(fleet_pb2.PullObjectResponse(object_found=found is not None, object_available=False))
            return
        async with self._flow.hold(found.size, who.id):
            await call.send(await self._pulled(who, request.run_id, found))

    async def _pulled(self, who: Principal, run_id: int, found: Found) -> bytes:
        """The answer with an object, which is in memory once only."""
        answer = PulledObject(found.size)
        async for part in self._core.objects.stream(who, run_id, [found.object_id]):
            answer.add(part.data)
        return answer.message()


def _seconds(told: float) -> float | None:
    """A duration as a node tells it; None for one that is none: it would spoil the run's sum."""
    return told if 0 <= told < math.inf else None


def _push_object(data: bytes) -> PushObject:
    try:
        return parse_push_object(data)
    except Malformed as error:
        raise malformed("PushObjectRequest", len(data)) from error


def _own_key(call: Call, claimed: bytes) -> NodeCredential:
    """The credential of a node that names its key in the request as well: both must be the same (WIRE.md 2.1)."""
    credential = call.credential()
    if public_pem(parse_public_key(claimed)) != credential.public_key:
        raise EdgeError(StatusCode.UNAUTHENTICATED, "Invalid public key")
    return credential


def unexpected(method: str) -> StatusCode:
    """An error of ours must not end a node: what it would die of is "try again", elsewhere it drops the message."""
    fatal = {"CreateNode", "RegisterNode", "ActivateNode", "SendNodeHeartbeat", "PullMessages"}
    return StatusCode.UNAVAILABLE if method in fatal else StatusCode.INTERNAL
