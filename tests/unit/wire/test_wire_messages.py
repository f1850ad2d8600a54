"""Messages: ids of captured ones, the rules of their metadata, the replies that a SuperLink makes itself."""

import math
from dataclasses import replace

import pytest
from trellis_wire.messages import (
    EARLIEST_CREATED_AT,
    ErrorCode,
    MessageError,
    Metadata,
    decode_message_object,
    encode_message_object,
    error_reply_to,
    instruction_problem,
    metadata_problem,
    reply_problem,
)
from trellis_wire.objects import ObjectError, encode_object, object_id
from trellis_wire.pb.edge import message_pb2
from wire_vectors import messages, objects

NOW = 1795518200.0
INSTRUCTION = Metadata(
    run_id=6344919671714899802,
    message_id="",
    src_node_id=1,
    dst_node_id=18165278796635509119,
    reply_to_message_id="",
    group_id="",
    ttl=43200.0,
    message_type="train",
    created_at=1795518150.890419,
)


def with_id(metadata: Metadata) -> Metadata:
    content_id = "a" * 64
    return replace(metadata, message_id=object_id(encode_message_object(metadata, content_id, None)))


def test_captured_messages_decode_and_encode_to_their_ids() -> None:
    with_task_ids = 0
    for captured in messages():
        content = objects()[captured.metadata.message_id]
        metadata, error, content_id = decode_message_object(content)
        assert metadata == Metadata.from_edge(captured.metadata)
        assert metadata.to_edge() == captured.metadata
        assert encode_message_object(metadata, content_id, error) == content
        with_task_ids += metadata.src_task_id is not None or metadata.dst_task_id is not None
    assert with_task_ids  # 1.30 and later


def test_error_messages_round_trip() -> None:
    error = MessageError(ErrorCode.CLIENT_APP_RAISED, "<class 'ValueError'>:<'né'>")
    content = encode_message_object(INSTRUCTION, None, error)
    metadata, decoded, content_id = decode_message_object(content)
    assert (decoded, content_id) == (error, None)
    assert metadata == replace(INSTRUCTION, message_id=object_id(content))


def test_a_message_has_exactly_one_of_content_and_error() -> None:
    for content_id, error in ((None, None), ("a" * 64, MessageError(0, ""))):
        with pytest.raises(ValueError, match="either a content or an error"):
            encode_message_object(INSTRUCTION, content_id, error)
    body = message_pb2.Message(metadata=INSTRUCTION.to_edge())
    with pytest.raises(ObjectError, match="exactly one"):
        decode_message_object(encode_object("Message", (), body.SerializeToString()))
    body.error.code = 1
    with pytest.raises(ObjectError, match="exactly one"):
        decode_message_object(encode_object("Message", ("a" * 64,), body.SerializeToString()))


def test_malformed_message_objects_are_refused() -> None:
    with pytest.raises(ObjectError, match="is a ArrayChunk object"):
        decode_message_object(encode_object("ArrayChunk", (), b""))
    with pytest.raises(ObjectError, match="not a Flower message"):
        decode_message_object(encode_object("Message", ("a" * 64,), b"\xff\xff"))
    inline = message_pb2.Message(metadata=INSTRUCTION.to_edge())
    inline.content.SetInParent()
    named = message_pb2.Message(metadata=replace(INSTRUCTION, message_id="x").to_edge())
    for body in (inline, named):
        with pytest.raises(ObjectError, match="belong outside"):
            decode_message_object(encode_object("Message", ("a" * 64,), body.SerializeToString()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"message_id": ""}, "no id"),
        ({"created_at": EARLIEST_CREATED_AT - 1}, "before 28 February 2025"),
        ({"created_at": math.nan}, "before 28 February 2025"),
        ({"created_at": math.inf}, "time to live"),
        ({"ttl": 0.0}, "not positive"),
        ({"ttl": -1.0}, "not positive"),
        ({"ttl": math.nan}, "not positive"),
        ({"ttl": math.inf}, "not positive"),
        ({"created_at": NOW - 50_000}, "expired"),
        ({"src_node_id": 0}, "no source"),
        ({"dst_node_id": 0}, "no destination"),
        ({"message_type": ""}, "no type"),
        ({"run_id": 0}, "no run"),
    ],
)
def test_rules_of_every_message(change: dict[str, object], says: str) -> None:
    good = with_id(INSTRUCTION)
    assert metadata_problem(good, now=NOW) is None
    problem = metadata_problem(replace(good, **change), now=NOW)  # type: ignore[arg-type]
    assert problem is not None
    assert says in problem


def test_rules_of_instructions_and_replies() -> None:
    instruction = with_id(INSTRUCTION)
    assert instruction_problem(instruction, now=NOW) is None
    assert instruction_problem(replace(instruction, reply_to_message_id="x"), now=NOW)
    assert instruction_problem(replace(instruction, src_node_id=2), now=NOW)
    assert instruction_problem(replace(instruction, dst_node_id=1), now=NOW)
    reply = with_id(
        replace(
            INSTRUCTION,
            src_node_id=instruction.dst_node_id,
            dst_node_id=1,
            reply_to_message_id=instruction.message_id,
            created_at=NOW,
            ttl=instruction.expires_at - NOW,
        )
    )
    assert reply_problem(reply, instruction, now=NOW) is None
    for change in (
        {"dst_node_id": 2},
        {"src_node_id": 1},
        {"src_node_id": 3},
        {"reply_to_message_id": "other"},
        {"run_id": 5},
        {"ttl": reply.ttl + 1},
        {"message_type": ""},
    ):
        assert reply_problem(replace(reply, **change), instruction, now=NOW), change


def test_the_superlinks_own_replies_name_their_instruction() -> None:
    instruction = replace(with_id(INSTRUCTION), src_task_id=7)
    for now in (NOW, instruction.expires_at + 100):
        metadata, content = error_reply_to(instruction, MessageError(ErrorCode.NODE_UNAVAILABLE, "gone"), now=now)
        assert decode_message_object(content) == (metadata, MessageError(5, "gone"), None)
        assert (metadata.src_node_id, metadata.dst_node_id) == (1, 1)
        assert metadata.reply_to_message_id == instruction.message_id
        assert (metadata.run_id, metadata.dst_task_id, metadata.src_task_id) == (instruction.run_id, 7, None)
        assert metadata.ttl > 0
