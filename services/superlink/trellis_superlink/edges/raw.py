"""PushObject and PullObject without protobuf's copies: their one large field is taken from and put into raw bytes.

A parsed message holds the content twice, and a field read from it a third time; with objects of 20 MiB (Flower
1.20-1.22) from several peers at once that alone would break the SuperLink's bound on memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from trellis_wire.pb.edge import fleet_pb2

_CONTENT = 4  # PushObjectRequest.object_content
_BYTES = 2  # wire type of length-delimited fields
_FIXED = {1: 8, 5: 4}


class Malformed(ValueError):
    """The bytes are no message."""


@dataclass(frozen=True)
class PushObject:
    """A PushObjectRequest whose content is a view into the received bytes."""

    node_id: int
    run_id: int
    object_id: str
    content: memoryview


def parse_push_object(data: bytes) -> PushObject:
    """Raises Malformed."""
    view = memoryview(data)
    small = bytearray()
    content = view[:0]
    at = 0
    while at < len(data):
        start = at
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            length, at = _read_varint(data, at)
            end = at + length
        elif kind == 0:
            _, end = _read_varint(data, at)
        elif kind in _FIXED:
            end = at + _FIXED[kind]
        else:
            raise Malformed("unknown wire type")
        if end > len(data) or number == 0:
            raise Malformed("cut off")
        if number == _CONTENT and kind == _BYTES:
            content = view[at:end]
        else:
            small += view[start:end]
        at = end
    try:
        rest = fleet_pb2.PushObjectRequest.FromString(bytes(small))
    except DecodeError as error:
        raise Malformed(str(error)) from error
    return PushObject(rest.node.node_id, rest.run_id, rest.object_id, content)


def pulled_object(size: int, parts: Sequence[bytes | memoryview]) -> bytes:
    """A PullObjectResponse that says found and available, and carries the content, `size` bytes in parts."""
    return b"".join((b"\x08\x01\x10\x01\x1a", varint(size), *parts))


def varint(value: int) -> bytes:
    """A number as protobuf writes lengths."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Malformed("cut off in a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
