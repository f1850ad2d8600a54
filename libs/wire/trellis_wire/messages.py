"""Messages: their metadata, their errors, and the Message object that carries both (Flower 1.20-1.42).

The Message object's body is the protobuf message without content and without its id; its one child is the RecordDict,
or none when it carries an error. So the id of a message is the SHA-256 of its Message object, whoever relays it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError

from trellis_wire.objects import Buffer, ObjectError, encode_object, object_id, parse_head
from trellis_wire.pb.edge import message_pb2, records_pb2

SUPERLINK_NODE_ID: Final = 1
EARLIEST_CREATED_AT: Final = 1740700800.0
"""Unix seconds (28 Feb 2025 UTC): Flower refuses messages that claim to be older."""
TTL_TOLERANCE: Final = 0.1
"""Seconds by which a reply may outlive its instruction."""


class ErrorCode(IntEnum):
    """Why a reply carries no content (Flower 1.20-1.42; 6 from 1.22, 7 and 8 from 1.24)."""

    UNKNOWN = 0
    LOAD_CLIENT_APP = 1
    CLIENT_APP_RAISED = 2
    MESSAGE_UNAVAILABLE = 3
    REPLY_UNAVAILABLE = 4
    NODE_UNAVAILABLE = 5
    MOD_PRECONDITION = 6
    INVALID_FAB = 7
    CLIENT_APP_CRASHED = 8


@dataclass(frozen=True)
class MessageError:
    """The error of a reply."""

    code: int
    reason: str

    def to_edge(self) -> records_pb2.Error:
        return records_pb2.Error(code=self.code, reason=self.reason)

    @classmethod
    def from_edge(cls, proto: records_pb2.Error) -> MessageError:
        return cls(proto.code, proto.reason)


@dataclass(frozen=True)
class Metadata:
    """A message's metadata. Ids are unsigned 64-bit; `ttl` in seconds, `created_at` in Unix seconds; `message_id` is
    the id of the Message object, empty as long as it is not known."""

    run_id: int
    message_id: str
    src_node_id: int
    dst_node_id: int
    reply_to_message_id: str
    group_id: str
    ttl: float
    message_type: str
    created_at: float
    src_task_id: int | None = None
    dst_task_id: int | None = None

    @property
    def expires_at(self) -> float:
        """Unix seconds."""
        return self.created_at + self.ttl

    def to_edge(self) -> message_pb2.Metadata:
        """For the edge protocol; absent task ids stay absent, as they are part of the hash."""
        return message_pb2.Metadata(
            run_id=self.run_id,
            message_id=self.message_id,
            src_node_id=self.src_node_id,
            dst_node_id=self.dst_node_id,
            reply_to_message_id=self.reply_to_message_id,
            group_id=self.group_id,
            ttl=self.ttl,
            message_type=self.message_type,
            created_at=self.created_at,
            src_task_id=self.src_task_id,
            dst_task_id=self.dst_task_id,
        )

    @classmethod
    def from_edge(cls, proto: message_pb2.Metadata) -> Metadata:
        return cls(
            run_id=proto.run_id,
            message_id=proto.message_id,
            src_node_id=proto.src_node_id,
            dst_node_id=proto.dst_node_id,
            reply_to_message_id=proto.reply_to_message_id,
            group_id=proto.group_id,
            ttl=proto.ttl,
            message_type=proto.message_type,
            created_at=proto.created_at,
            src_task_id=proto.src_task_id if proto.HasField("src_task_id") else None,
            dst_task_id=proto.dst_task_id if proto.HasField("dst_task_id") else None,
        )


def encode_message_object(metadata: Metadata, content_id: str | None, error: MessageError | None) -> bytes:
    """The content of a Message object; `metadata.message_id` is left out, as the id is the content's hash.

    Exactly one of `content_id` (the RecordDict's id) and `error` has to be given; ValueError otherwise.
    """
    if (content_id is None) == (error is None):
        raise ValueError("A message carries either a content or an error.")
    proto = message_pb2.Message(metadata=replace(metadata, message_id="").to_edge())
    if error is not None:
        proto.error.CopyFrom(error.to_edge())
    children = () if content_id is None else (content_id,)
    return encode_object("Message", children, proto.SerializeToString(deterministic=True))


def decode_message_object(content: Buffer) -> tuple[Metadata, MessageError | None, str | None]:
    """Metadata (with the message's id), error and RecordDict id of a Message object; ObjectError if it is none."""
    head = parse_head(content, len(content))
    if head.type_name != "Message":
        raise ObjectError(f"The root of a message is a {head.type_name} object; send a Message object there.")
    try:
        proto = message_pb2.Message.FromString(bytes(content[head.head_length :]))
    except DecodeError as error:
        raise ObjectError(
            "The Message object's body is not a Flower message; send it as Flower 1.20-1.42 encodes it."
        ) from error
    has_error = proto.HasField("error")
    if proto.HasField("content") or proto.metadata.message_id:
        raise ObjectError("The Message object's body holds a content or an id; both belong outside of it.")
    if len(head.children) != (0 if has_error else 1):
        raise ObjectError("A message has exactly one of content and error; send one of them.")
    metadata = replace(Metadata.from_edge(proto.metadata), message_id=object_id(content))
    return (
        metadata,
        MessageError.from_edge(proto.error) if has_error else None,
        head.children[0] if head.children else None,
    )


def error_reply_to(instruction: Metadata, error: MessageError, *, now: float) -> tuple[Metadata, bytes]:
    """The reply that a SuperLink makes itself: metadata with its id, and the Message object.

    Source and destination are the SuperLink's own id, as in Flower; the type is the instruction's.
    """
    return _error_reply(instruction, SUPERLINK_NODE_ID, SUPERLINK_NODE_ID, error, now)


def error_reply_from_node(instruction: Metadata, error: MessageError, *, now: float) -> tuple[Metadata, bytes]:
    """The reply of a node that could not do what it was told: metadata with its id, and the Message object."""
    return _error_reply(instruction, instruction.dst_node_id, instruction.src_node_id, error, now)


def _error_reply(
    instruction: Metadata, source: int, destination: int, error: MessageError, now: float
) -> tuple[Metadata, bytes]:
    metadata = Metadata(
        run_id=instruction.run_id,
        message_id="",
        src_node_id=source,
        dst_node_id=destination,
        reply_to_message_id=instruction.message_id,
        group_id=instruction.group_id,
        ttl=max(instruction.expires_at - now, TTL_TOLERANCE),
        message_type=instruction.message_type,
        created_at=now,
        src_task_id=instruction.dst_task_id,
        dst_task_id=instruction.src_task_id,
    )
    content = encode_message_object(metadata, None, error)
    return replace(metadata, message_id=object_id(content)), content


def metadata_problem(metadata: Metadata, *, now: float) -> str | None:
    """The rule that any stored message breaks (WIRE rules of Flower 1.20-1.42), in one sentence; None when none."""
    if not metadata.message_id:
        return "The message has no id."
    if not metadata.created_at >= EARLIEST_CREATED_AT:
        return "The message claims to be from before 28 February 2025; is the sender's clock right?"
    if not math.isfinite(metadata.created_at) or not math.isfinite(metadata.ttl) or not metadata.ttl > 0:
        return "The message's time to live is not positive."
    if not metadata.expires_at > now:
        return "The message has expired."
    if not metadata.src_node_id or not metadata.dst_node_id:
        return "The message names no source or no destination."
    if not metadata.message_type:
        return "The message has no type."
    if not metadata.run_id:
        return "The message names no run."
    return None


def instruction_problem(metadata: Metadata, *, now: float) -> str | None:
    """The rule that an instruction (ServerApp to node) breaks, or None."""
    if metadata.reply_to_message_id:
        return "An instruction cannot be a reply."
    if metadata.src_node_id != SUPERLINK_NODE_ID or metadata.dst_node_id == SUPERLINK_NODE_ID:
        return "An instruction goes from the SuperLink (node 1) to another node."
    return metadata_problem(metadata, now=now)


def reply_problem(reply: Metadata, instruction: Metadata, *, now: float) -> str | None:
    """The rule that a reply to this instruction breaks, or None."""
    if reply.dst_node_id != SUPERLINK_NODE_ID or reply.src_node_id == SUPERLINK_NODE_ID:
        return "A reply goes from a node to the SuperLink (node 1)."
    if reply.reply_to_message_id != instruction.message_id:
        return "The reply answers another instruction."
    if reply.src_node_id != instruction.dst_node_id:
        return "The reply comes from another node than the instruction went to."
    if reply.run_id != instruction.run_id:
        return "The reply names another run than its instruction."
    if reply.ttl > instruction.expires_at - reply.created_at + TTL_TOLERANCE:
        return "The reply would outlive its instruction."
    return metadata_problem(reply, now=now)
