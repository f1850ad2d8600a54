"""Between a guest's frames and the wire's records and messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from trellis_wire.messages import MessageError, Metadata, encode_message_object
from trellis_wire.objects import Buffer, ObjectSource, Tree, encode_head, object_id
from trellis_wire.records import Array, ArrayRecord, Bundle, ConfigRecord, MetricRecord, Record, deflate
from trellis_wire.values import decode_configs, decode_metrics, encode_configs, encode_metrics


class FrameRecords:
    """Records on their way to a guest: descriptions for the header, and the frame's buffers."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def _add(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def describe(self, records: Mapping[str, Record]) -> list[Any]:
        """What the guest's `records_in` reads. Metric and config records travel as whole objects."""
        described: list[Any] = []
        for key, record in records.items():
            if isinstance(record, ArrayRecord):
                arrays = [
                    [name, array.dtype, list(array.shape), array.stype, self._add(array.data)]
                    for name, array in record.items.items()
                ]
                described.append([key, "array", arrays])
            elif isinstance(record, MetricRecord):
                described.append([key, "metric", self._add(_whole("MetricRecord", encode_metrics(record.items)))])
            else:
                described.append([key, "config", self._add(_whole("ConfigRecord", encode_configs(record.items)))])
        return described

    def describe_message(
        self, metadata: Metadata, error: MessageError | None, records: Mapping[str, Record] | None
    ) -> dict[str, Any]:
        """What the guest's `message_in` reads."""
        described: dict[str, Any] = {"metadata": asdict(metadata)}
        if error is not None:
            described["error"] = [error.code, error.reason]
        else:
            described["records"] = self.describe(records or {})
        return described


def _whole(type_name: str, body: bytes) -> bytes:
    return encode_head(type_name, (), len(body)) + body


def _body(content: Buffer) -> bytes:
    view = bytes(content)
    return view[view.index(b"\0") + 1 :]


def read_records(described: Sequence[Any], buffers: Sequence[Buffer]) -> dict[str, Record]:
    """The records that a guest described."""
    records: dict[str, Record] = {}
    for key, kind, content in described:
        if kind == "array":
            records[key] = ArrayRecord(
                {
                    name: Array(dtype, tuple(shape), buffers[place], stype)
                    for name, dtype, shape, stype, place in content
                }
            )
        elif kind == "metric":
            records[key] = MetricRecord(decode_metrics(_body(buffers[content])))
        else:
            records[key] = ConfigRecord(decode_configs(_body(buffers[content])))
    return records


def read_metadata(described: Mapping[str, Any]) -> Metadata:
    """The metadata that a guest described; its message id is not the final one."""
    return Metadata(**{**described, "message_id": "", "ttl": float(described["ttl"])})


class Packer:
    """Packs the messages of one frame; records that several messages share are cut and hashed once."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = buffers
        self._contents: dict[str, Bundle] = {}
        self.objects: dict[str, ObjectSource] = {}

    def pack(self, described: Mapping[str, Any]) -> tuple[Metadata, Tree]:
        """One message: its metadata with the final id, and its tree. The objects are added to `objects`."""
        metadata = read_metadata(described["metadata"])
        if described.get("error") is not None:
            code, reason = described["error"]
            return self._root(metadata, None, MessageError(code, reason))
        key = json.dumps(described["records"])
        content = self._contents.get(key)
        if content is None:
            content = self._contents[key] = deflate(read_records(described["records"], self._buffers))
            self.objects.update(content.objects)
        return self._root(metadata, content.tree, None)

    def _root(self, metadata: Metadata, content: Tree | None, error: MessageError | None) -> tuple[Metadata, Tree]:
        root = encode_message_object(metadata, content.object_id if content else None, error)
        tree = Tree(object_id(root), (content,) if content else ())
        self.objects[tree.object_id] = ObjectSource(b"", root)
        return replace(metadata, message_id=tree.object_id), tree
