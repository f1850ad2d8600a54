"""Messages with one large field, cut and put together by hand: protobuf has to agree."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from trellis_wire.bulk import Malformed, Part, decode_part, encode_part
from trellis_wire.pb.appio import appio_pb2

UINT64 = st.integers(min_value=0, max_value=2**64 - 1)


@given(object_id=st.text(max_size=70), offset=UINT64, size=UINT64, data=st.binary(max_size=400))
def test_parts_are_what_protobuf_reads_and_writes(object_id: str, offset: int, size: int, data: bytes) -> None:
    part = appio_pb2.ObjectPart(object_id=object_id, offset=offset, size=size, data=data)
    assert appio_pb2.ObjectPart.FromString(encode_part(object_id, offset, size, memoryview(data))) == part
    assert decode_part(part.SerializeToString()) == Part(object_id, offset, size, memoryview(data))
    assert decode_part(encode_part(object_id, offset, size, data)) == Part(object_id, offset, size, memoryview(data))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_part_or_malformed(data: bytes) -> None:
    try:
        expected = appio_pb2.ObjectPart.FromString(data)
    except DecodeError:
        expected = None
    try:
        part = decode_part(data)
    except Malformed:
        return  # stricter than protobuf is fine
    if expected is not None:
        assert (part.object_id, part.offset, part.size) == (expected.object_id, expected.offset, expected.size)
        assert bytes(part.data) == expected.data


@pytest.mark.parametrize("data", [b"\x22\x05abc", b"\x22", b"\xff" * 11, b"\x0b", b"\x02\x00"])
def test_what_is_cut_off_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_part(data)
