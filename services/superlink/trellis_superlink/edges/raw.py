"""PushObject and PullObject without protobuf's copies: their one large field is taken from and put into raw bytes.

With objects of 20 MiB (Flower 1.20-1.22) from several peers at once, copies alone would break the SuperLink's bound on
memory.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from trellis_wire.bulk import Malformed, introduce, split
from trellis_wire.pb.edge import fleet_pb2

__all__ = ["Malformed", "PulledObject", "PushObject", "parse_push_object"]

_PUSHED = 4  # PushObjectRequest.object_content
_PULLED = 3  # PullObjectResponse.object_content
_FOUND = fleet_pb2.PullObjectResponse(object_found=True, object_available=True).SerializeToString()


@dataclass(frozen=True)
class PushObject:
    """A PushObjectRequest whose content is a view into the received bytes."""

    node_id: int
    run_id: int
    object_id: str
    content: memoryview


def parse_push_object(data: bytes) -> PushObject:
    """Raises Malformed."""
    small, content = split(data, _PUSHED)
    try:
        rest = fleet_pb2.PushObjectRequest.FromString(small)
    except DecodeError as error:
        raise Malformed(str(error)) from error
    return PushObject(rest.node.node_id, rest.run_id, rest.object_id, content)


class PulledObject:
    """A PullObjectResponse that says found and available; the content, `size` bytes in all, is added part by part."""

    def __init__(self, size: int) -> None:
        self._data = io.BytesIO()
        self._data.write(introduce(_FOUND, _PULLED, size))

    def add(self, part: bytes | memoryview) -> None:
        self._data.write(part)

    def message(self) -> bytes:
        """The whole message; not a copy, so nothing can be added any more."""
        return self._data.getvalue()
