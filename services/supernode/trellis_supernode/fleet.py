"""Calls to the SuperLink's Fleet API: signed, repeated while it is away, and what its statuses mean."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from trellis_kit import logs
from trellis_kit.channel import Channel
from trellis_kit.http_channel import EdgeChannel
from trellis_kit.lifecycle import Fatal
from trellis_kit.retry import Backoff
from trellis_wire.bulk import Part, decode_part, encode_part
from trellis_wire.identity import public_pem, sign_headers_grpc
from trellis_wire.objects import Tree
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import fleet_pb2, fleet_pb2_grpc, message_pb2, node_pb2, run_pb2

_log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL: Final = 30.0
"""Seconds announced to the SuperLink; the node is offline after two of them without a sign (Flower 1.20-1.42)."""
CAPABILITIES: Final = ("trellis-capabilities", "inline")
OBJECTS: Final = "objects"
"""What a SuperLink announces that takes and hands out objects in parts (NodeObjects)."""
PART: Final = 1024 * 1024
CHANNEL_OPTIONS: Final = (
    # Heartbeats bring an answer every 20 s, so that a ping is sent only where the network is gone without a word, and
    # then the connection is given up within a minute.
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_SHORT: Final = 5.0  # seconds for a call that is answered at once (Flower's own for heartbeats)
_PULL_DEADLINE: Final = 60.0  # a held call that is silent for longer has lost its connection
_OBJECT_TRIES: Final = 500  # for content that is on its way to the SuperLink (WIRE.md 2.3)

_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)


class RunOver(Exception):
    """The SuperLink takes nothing for this run any more."""


class Refused(Exception):
    """The SuperLink refuses. `final` when asking again cannot help."""

    def __init__(self, details: str, *, final: bool) -> None:
        super().__init__(details)
        self.final = final


class NotLetIn(Exception):
    """The SuperLink does not accept this node; says what the operator can do."""


class Interrupted(Exception):
    """A stream of objects broke; what is still missing can be asked for again."""


class ObjectGone(Exception):
    """An object of an instruction is not at the SuperLink (any more)."""


class FleetClient:
    """The SuperLink as this node sees it. Every call waits while the SuperLink is away.

    `max_retries` and `max_wait` (seconds) bound that waiting where the operator wants it bounded; Fatal then.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        key: ec.EllipticCurvePrivateKey,
        *,
        max_retries: int | None = None,
        max_wait: float | None = None,
    ) -> None:
        self._stub: Any = fleet_pb2_grpc.FleetStub(channel)
        # Without (de)serializers: parts are read and written without protobuf's copies.
        service = "/trellis.appio.v1.NodeObjects/"
        self._pull_objects: Any = channel.unary_stream(
            service + "PullObjects", appio_pb2.PullObjectsRequest.SerializeToString, None
        )
        self._push_objects: Any = channel.stream_unary(
            service + "PushObjects", None, appio_pb2.PushObjectsResponse.FromString
        )
        self._key = key
        self._max_retries = max_retries
        self._max_wait = max_wait
        self._channel = channel
        self._told: str | None = None
        self.node_id = 0
        self._joined = asyncio.Event()
        self.inline = False  # whether the SuperLink announced that it speaks our fields
        self.streams = False  # whether it announced NodeObjects
        self.reachable: bool | None = None  # None: not tried yet

    @property
    def _node(self) -> node_pb2.Node:
        return node_pb2.Node(node_id=self.node_id)

    async def _call(
        self, method: str, request: Any, *, timeout: float | None = None, wait_to_be_let_in: bool = True
    ) -> Any:
        """Any error but RunOver, Refused, NotLetIn and Fatal is waited out.

        With `wait_to_be_let_in` so is UNAUTHENTICATED: the calls that keep the node joined find out about it too, and
        join again. What a node takes up from an earlier life before it has joined waits for that, too.
        """
        if wait_to_be_let_in:
            await self._joined.wait()
            request.node.node_id = self.node_id
        with logs.bound(request_id=logs.request_id()):
            return await self._until_answered(method, request, timeout, wait_to_be_let_in)

    async def _until_answered(self, method: str, request: Any, timeout: float | None, wait_to_be_let_in: bool) -> Any:
        backoff, tries, since = Backoff(initial=0.1, cap=5.0), 0, time.monotonic()
        while True:
            try:
                answer = await self._once(method, request, timeout)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED and wait_to_be_let_in:
                    _log.debug("Waiting to be let in again: %s", error.details())
                elif error.code() in _TRANSIENT:
                    await self._tell(error)
                else:
                    raise _meaning(method, error) from error
                tries += 1
                waited = time.monotonic() - since
                if (self._max_retries is not None and tries > self._max_retries) or (
                    self._max_wait is not None and waited > self._max_wait
                ):
                    raise Fatal(f"The SuperLink could not be reached {tries} times in {waited:.0f} s.") from error
            else:
                if not self.reachable:
                    _log.info("The SuperLink answers")
                self.reachable = True
                self._told = None
                _log.debug("%s answered", method)
                return answer
            await backoff.wait()

    async def _tell(self, error: grpc.aio.AioRpcError) -> None:
        """Once for a time without the SuperLink, and again when TLS turns out to be the cause, or a new part of it."""
        cause = None
        if isinstance(self._channel, Channel) and error.code() is grpc.StatusCode.UNAVAILABLE:
            cause = await self._channel.explain()
        if self.reachable is not False or cause not in (None, self._told):
            _log.warning("The SuperLink cannot be reached, trying again: %s", cause or error.details())
        self._told = cause or self._told
        self.reachable = False

    async def _once(self, method: str, request: Any, timeout: float | None) -> Any:
        metadata = (*sign_headers_grpc(self._key), CAPABILITIES, (logs.REQUEST_ID, logs.request_id()))
        call = getattr(self._stub, method)(request, metadata=metadata, timeout=timeout)
        answer = await call
        if method == "PullMessages":
            announced = str(dict(await call.initial_metadata()).get(CAPABILITIES[0], "")).split(",")
            over_http = isinstance(self._channel, EdgeChannel) and self._channel.over_http
            self.inline, self.streams = CAPABILITIES[1] in announced, OBJECTS in announced and not over_http
        return answer

    # ---- life ----------------------------------------------------------------------------------------------

    async def join(self, *, register: bool) -> int:
        """Register (unless the operator has done that) and come online; the node's id. NotLetIn."""
        public = public_pem(self._key)
        if register:
            request = fleet_pb2.RegisterNodeFleetRequest(public_key=public)
            try:
                await self._call("RegisterNode", request, wait_to_be_let_in=False)
            except Refused as error:
                # Stock refuses a key that it knows; and where only the operator registers nodes, this one may be.
                _log.debug("Not registered by itself: %s", error)
        activation = fleet_pb2.ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_INTERVAL)
        try:
            self.node_id = (await self._call("ActivateNode", activation, wait_to_be_let_in=False)).node_id
        except (Refused, RunOver) as error:
            raise NotLetIn(
                f"The SuperLink does not know this node ({error}). Its operator can register the public key: "
                "trellis supernode register."
            ) from error
        self._joined.set()
        return self.node_id

    async def leave(self) -> None:
        """Say goodbye; once, as the SuperLink notices anyway."""
        try:
            await self._once("DeactivateNode", fleet_pb2.DeactivateNodeRequest(node_id=self.node_id), _SHORT)
        except grpc.aio.AioRpcError as error:
            _log.info("The SuperLink did not hear the goodbye: %s", error.details())

    async def heartbeat(self) -> None:
        """One sign of life. NotLetIn, Refused."""
        request = fleet_pb2.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_INTERVAL)
        answer = await self._call("SendNodeHeartbeat", request, timeout=_SHORT, wait_to_be_let_in=False)
        if not answer.success:
            raise Refused("it does not count this node's heartbeats", final=False)

    # ---- work ----------------------------------------------------------------------------------------------

    async def pull(
        self, capacity: int, working_on: Sequence[str], known_runs: Sequence[int]
    ) -> fleet_pb2.PullMessagesResponse:
        """Instructions, as soon as there are any; an empty answer after a while. NotLetIn, Refused."""
        request = fleet_pb2.PullMessagesRequest(
            node=self._node,
            trellis_capacity=capacity,
            trellis_working_on=working_on,
            trellis_known_runs=known_runs,
        )
        answer: fleet_pb2.PullMessagesResponse = await self._call(
            "PullMessages", request, timeout=_PULL_DEADLINE, wait_to_be_let_in=False
        )
        return answer

    async def confirm(self, run_id: int, message_id: str) -> None:
        """The instruction is here, whatever happens to this node."""
        request = fleet_pb2.ConfirmMessageReceivedRequest(run_id=run_id, message_object_id=message_id)
        await self._call("ConfirmMessageReceived", request)

    async def run(self, run_id: int) -> run_pb2.Run:
        """What the SuperLink says of a run. RunOver."""
        answer = await self._call("GetRun", run_pb2.GetRunRequest(run_id=run_id))
        run: run_pb2.Run = answer.run
        if run.status.status == "finished":
            raise RunOver(run.status.details or run.status.sub_status or "it has finished")
        return run

    async def fab(self, run_id: int, fab_hash: str) -> tuple[bytes, dict[str, str]]:
        """The content of a FAB as it came, and the signatures that came with it."""
        request = run_pb2.GetFabRequest(run_id=run_id, hash_str=fab_hash)
        fab = (await self._call("GetFab", request)).fab
        return fab.content, dict(fab.verifications)

    async def object(self, run_id: int, object_id: str) -> bytes:
        """An object's content, as it came; waits while it is on its way to the SuperLink. ObjectGone."""
        backoff = Backoff(initial=0.2, cap=10.0)
        request = fleet_pb2.PullObjectRequest(run_id=run_id, object_id=object_id)
        for _ in range(_OBJECT_TRIES):
            answer = await self._call("PullObject", request)
            if not answer.object_found:
                raise ObjectGone(f"Object {object_id} is not at the SuperLink.")
            if answer.object_available:
                content: bytes = answer.object_content
                return content
            await backoff.wait()
        raise ObjectGone(f"Object {object_id} did not arrive at the SuperLink.")

    async def pull_objects(self, run_id: int, object_ids: Sequence[str]) -> AsyncIterator[Part]:
        """Objects in parts, one after the other, where `streams`. Malformed, RunOver, Refused; Interrupted."""
        request = appio_pb2.PullObjectsRequest(object_ids=object_ids)
        call = self._pull_objects(request, metadata=await self._stream_metadata(run_id))
        try:
            async for data in call:
                yield decode_part(data)
        except grpc.aio.AioRpcError as error:
            raise self._stream_problem("PullObjects", error) from error
        finally:
            call.cancel()

    async def push_objects(self, run_id: int, parts: AsyncIterator[Part]) -> set[str]:
        """Sends objects in parts, where `streams`; those that the SuperLink has now. RunOver, Refused; Interrupted."""

        async def encoded() -> AsyncIterator[bytes]:
            async for part in parts:
                yield encode_part(part.object_id, part.offset, part.size, part.data)

        call = self._push_objects(encoded(), metadata=await self._stream_metadata(run_id))
        try:
            return set((await call).stored)
        except grpc.aio.AioRpcError as error:
            raise self._stream_problem("PushObjects", error) from error
        finally:
            call.cancel()

    async def _stream_metadata(self, run_id: int) -> tuple[tuple[str, str | bytes], ...]:
        await self._joined.wait()
        about = (("trellis-node-id", str(self.node_id)), ("trellis-run-id", str(run_id)))
        return (*sign_headers_grpc(self._key), *about, (logs.REQUEST_ID, logs.request_id()))

    def _stream_problem(self, method: str, error: grpc.aio.AioRpcError) -> Exception:
        """Where the SuperLink is away or does not let the node in for now, other calls find out and wait for it."""
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            self.streams = False  # an older SuperLink has taken its place
        elif (
            error.code() not in (*_TRANSIENT, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.CANCELLED)
            # What grpc.aio makes of a connection that breaks while a request stream writes (seen in 1.85).
            and not (error.details() or "").startswith("Internal error from Core")
        ):
            return _meaning(method, error)
        return Interrupted(f"{method}: {error.details() or error.code().name}")

    async def push(
        self, message: message_pb2.Message, tree: Tree, runtime: float, inline: Sequence[tuple[str, bytes]]
    ) -> fleet_pb2.PushMessagesResponse:
        """A reply with its small objects; the answer names the objects that are still to be sent. RunOver, Refused."""
        objects = [fleet_pb2.InlineObject(object_id=object_id, content=content) for object_id, content in inline]
        request = fleet_pb2.PushMessagesRequest(
            messages_list=[message],
            message_object_trees=[tree.to_edge()],
            clientapp_runtime_list=[runtime],
            trellis_objects=objects if self.inline else (),
        )
        answer: fleet_pb2.PushMessagesResponse = await self._call("PushMessages", request)
        return answer

    async def push_object(self, run_id: int, object_id: str, content: bytes, session_id: str) -> bool:
        """Whether the SuperLink has it now."""
        request = fleet_pb2.PushObjectRequest(
            run_id=run_id, object_id=object_id, object_content=content, session_id=session_id
        )
        return bool((await self._call("PushObject", request)).stored)


def _meaning(method: str, error: grpc.aio.AioRpcError) -> Exception:
    """What a status means to a node (Flower 1.20-1.39)."""
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        return RunOver(details)
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        why = (
            "The clocks of both machines differ; set them right."
            if "timestamp" in details.lower()
            else "Is the key the registered one, and are the clocks of both machines right?"
        )
        return NotLetIn(f"The SuperLink does not accept this node's signature ({method}: {details}). {why}")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED and method == "ActivateNode":
        return NotLetIn(
            f"What answers there lets no SuperNode join ({details}). --superlink is the address of a SuperLink's "
            "Fleet API, usually on port 9092."
        )
    return Refused(f"{method}: {details}", final=error.code() in _FINAL)
