"""Objects on their way between an executor and its SuperLink or SuperNode, in parts of 1 MiB."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

from trellis_kit import logs
from trellis_wire.objects import Buffer, ObjectError, ObjectSource, Tree, verify_object
from trellis_wire.pb.appio import appio_pb2

from trellis_runner.attendance import persist
from trellis_runner.room import join

TOKEN: Final = "trellis-token"
PART: Final = 1024 * 1024
INLINE_OBJECT: Final = 64 * 1024
"""Bytes of an object that travels inside its parcel."""
INLINE_PARCEL: Final = 1024 * 1024
"""Bytes of objects inside one parcel, besides its root."""


class Transfer:
    """The object calls of either AppIO stub, with the token of one piece of work and a request id for all its calls."""

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
        current, parts, filled = "", list[bytes](), 0
        async for part in self.stub.PullObjects(
            appio_pb2.PullObjectsRequest(object_ids=wanted), metadata=self.metadata
        ):
            if part.offset == 0:
                current, parts, filled = part.object_id, [], 0
            if part.object_id != current or part.offset != filled or filled + len(part.data) > part.size:
                raise ObjectError(f"The parts of object {part.object_id[:16]} do not follow each other.")
            parts.append(part.data)
            filled += len(part.data)
            if filled == part.size:
                content = join(parts)
                verify_object(current, content)
                objects[current] = content

    async def push(self, sources: Mapping[str, ObjectSource], missing: Iterable[str]) -> None:
        """Send the objects that the other side lacks."""
        wanted = list(missing)

        async def parts() -> AsyncIterator[appio_pb2.ObjectPart]:
            for object_id in wanted:
                source = sources[object_id]
                offset = 0
                for data in source.parts(PART):
                    yield appio_pb2.ObjectPart(object_id=object_id, offset=offset, size=source.size, data=bytes(data))
                    offset += len(data)

        if wanted:
            await persist(lambda: self.stub.PushObjects(parts(), metadata=self.metadata))


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
