"""Messages with one large bytes field, without protobuf's copies of it.

A parsed message holds such a field twice, and a field read from it is a third copy; on the way out it is the same. So
the field is cut out of the received bytes as a view, and put behind the rest of the message when it is sent: protobuf
takes fields in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from trellis_wire.objects import Buffer
from trellis_wire.pb.appio import appio_pb2

_BYTES = 2  # wire type of length-delimited fields
_FIXED = {1: 8, 5: 4}
_PART_DATA: Final = 4  # ObjectPart.data


class Malformed(ValueError):
    """The bytes are no message."""


def split(data: bytes, number: int) -> tuple[bytes, memoryview]:
    """The message without field `number`, and a view of that field's content (empty where it is absent). Malformed."""
    view = memoryview(data)
    rest = bytearray()
    content = view[:0]
    at = 0
    while at < len(data):
        start = at
        key, at = _read_varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == _BYTES:
            length, at = _read_varint(data, at)
            end = at + length
        elif kind == 0:
            _, end = _read_varint(data, at)
        elif kind in _FIXED:
            end = at + _FIXED[kind]
        else:
            raise Malformed("unknown wire type")
        if end > len(data) or field == 0:
            raise Malformed("cut off")
        if field == number and kind == _BYTES:
            content = view[at:end]
        else:
            rest += view[start:end]
        at = end
    return bytes(rest), content


def introduce(rest: bytes, number: int, size: int) -> bytes:
    """What stands before `size` bytes of field `number`: the rest of the message, and the field's tag and length."""
    return b"".join((rest, varint(number << 3 | _BYTES), varint(size)))


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one object: `data` from `offset` on, of `size` bytes in all."""

    object_id: str
    offset: int
    size: int
    data: memoryview


def encode_part(object_id: str, offset: int, size: int, data: Buffer) -> bytes:
    """A serialized ObjectPart."""
    rest = appio_pb2.ObjectPart(object_id=object_id, offset=offset, size=size).SerializeToString()
    return b"".join((introduce(rest, _PART_DATA, len(data)), data))


def decode_part(data: bytes) -> Part:
    """Reads a serialized ObjectPart. Malformed."""
    rest, content = split(data, _PART_DATA)
    try:
        part = appio_pb2.ObjectPart.FromString(rest)
    except DecodeError as error:
        raise Malformed(str(error)) from error
    return Part(part.object_id, part.offset, part.size, content)


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
