"""Objects on their way between an executor and its SuperLink or SuperNode, in parts of 1 MiB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

import grpc
from trellis_kit import logs
from trellis_wire.bulk import Part, decode_part, encode_part
from trellis_wire.objects import Buffer, ObjectError, ObjectSource, Tree, verify_object
from trellis_wire.pb.appio import appio_pb2

from trellis_runner.attendance import persist
from trellis_runner.room import room

TOKEN: Final = "trellis-token"
PART: Final = 1024 * 1024
INLINE_OBJECT: Final = 64 * 1024
"""Bytes of an object that travels inside its parcel."""
INLINE_PARCEL: Final = 1024 * 1024
"""Bytes of objects inside one parcel, besides its root."""


class Transfer:
    """The object calls of either AppIO stub (made `without_copies`), with the token of one piece of work and one id for
    all its requests."""

    def __init__(self, stub: Any, token: str) -> None:
        self.stub = stub
        self.request_id = logs.request_id()
        self.metadata = ((TOKEN, token), (logs.REQUEST_ID, self.request_id))

    async def fetch(self, parcel: appio_pb2.Parcel) -> tuple[Tree, dict[str, Buffer]]:
        """A parcel's tree and the contents of all its objects, verified. ObjectError."""
        tree = Tree.from_appio(parcel.tree)
        objects: dict[str, Buffer] = {}
        for one in parcel.objects:
            verify_object(one.object_id, one.content)
            objects[one.object_id] = one.content
        wanted = tree.post_order()
        while not all(object_id in objects for object_id in wanted):
            await persist(lambda: self._pull(wanted, objects))
        return tree, objects

    async def _pull(self, object_ids: Sequence[str], objects: dict[str, Buffer]) -> None:
        wanted = [object_id for object_id in object_ids if object_id not in objects]
        current: _Arriving | None = None
        verifying: asyncio.Task[None] | None = None  # one object is hashed while the next one arrives
        try:
            async for data in self.stub.PullObjects(
                appio_pb2.PullObjectsRequest(object_ids=wanted), metadata=self.metadata
            ):
                part = decode_part(data)
                if current is None:
                    current = _Arriving(part.object_id, part.size)
                current.take(part)
                if current.complete:
                    if verifying is not None:
                        await verifying
                    verifying = asyncio.create_task(_verified(current, objects))
                    current = None
            if verifying is not None:
                await verifying
        finally:
            if verifying is not None:
                await asyncio.wait([verifying])

    async def push(self, sources: Mapping[str, ObjectSource], missing: Iterable[str]) -> None:
        """Send the objects that the other side lacks."""
        wanted = list(missing)

        async def parts() -> AsyncIterator[bytes]:
            for object_id in wanted:
                source = sources[object_id]
                offset = 0
                for data in source.parts(PART):
                    yield encode_part(object_id, offset, source.size, data)
                    offset += len(data)

        if wanted:
            await persist(lambda: self.stub.PushObjects(parts(), metadata=self.metadata))


class _Arriving:
    """An object on its way."""

    def __init__(self, object_id: str, size: int) -> None:
        self.object_id = object_id
        self.content = room(size)
        self._view = memoryview(self.content)
        self._filled = 0

    @property
    def complete(self) -> bool:
        return self._filled == len(self._view)

    def take(self, part: Part) -> None:
        end = self._filled + len(part.data)
        expected = (self.object_id, self._filled, len(self._view))
        if (part.object_id, part.offset, part.size) != expected or end > part.size:
            raise ObjectError(f"The parts of object {part.object_id[:16]} do not follow each other.")
        self._view[self._filled : end] = part.data
        self._filled = end


async def _verified(arrived: _Arriving, objects: dict[str, Buffer]) -> None:
    """Adds the object, if it is what it says."""
    if len(arrived.content) > INLINE_OBJECT:
        await asyncio.to_thread(verify_object, arrived.object_id, arrived.content)
    else:
        verify_object(arrived.object_id, arrived.content)
    objects[arrived.object_id] = arrived.content


def without_copies(stub: Any, channel: grpc.aio.Channel, service: str) -> None:
    """The calls of a stub that move models take and give serialized parts from now on; see trellis_wire.bulk."""
    stub.PullObjects = channel.unary_stream(
        f"/{service}/PullObjects", appio_pb2.PullObjectsRequest.SerializeToString, None
    )
    stub.PushObjects = channel.stream_unary(f"/{service}/PushObjects", None, appio_pb2.PushObjectsResponse.FromString)


def pack(tree: Tree, sources: Mapping[str, ObjectSource]) -> appio_pb2.Parcel:
    """A parcel with its root and as many small objects as may travel along."""
    room = INLINE_PARCEL
    objects = []
    for object_id in reversed(tree.post_order()):
        source = sources[object_id]
        if object_id == tree.object_id or (source.size <= INLINE_OBJECT and source.size <= room):
            room -= source.size
            objects.append(appio_pb2.Object(object_id=object_id, content=source.content()))
    return appio_pb2.Parcel(tree=tree.to_appio(), objects=objects)
