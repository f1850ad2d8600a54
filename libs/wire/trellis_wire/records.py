"""Records without flwr: what an executor turns an app's messages into, and back.

`deflate` cuts records into content-addressed objects, `inflate` puts them together again, byte for byte as Flower
1.20-1.42 does. Large arrays are never copied: an object of theirs is a short head and a view of the caller's buffer.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from trellis_wire.messages import MessageError, Metadata, decode_message_object, encode_message_object
from trellis_wire.objects import Buffer, ObjectError, Tree, encode_head, encode_object, parse_head
from trellis_wire.pb.edge import records_pb2

CHUNK_SIZE: Final = 5 * 1024 * 1024
"""Bytes of an array in one object (Flower 1.23-1.42; receivers take any size)."""
NUMPY: Final = "numpy.ndarray"

MetricValue = int | float | list[int] | list[float]
ConfigValue = bool | int | float | str | bytes | list[bool] | list[int] | list[float] | list[str] | list[bytes]

_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True)
class Array:
    """An array as it travels: `data` is the NPY file's bytes (header and buffer), `stype` says so."""

    dtype: str
    shape: tuple[int, ...]
    data: Buffer
    stype: str = NUMPY


@dataclass(frozen=True)
class ArrayRecord:
    items: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricRecord:
    items: Mapping[str, MetricValue] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigRecord:
    items: Mapping[str, ConfigValue] = field(default_factory=dict)


Record = ArrayRecord | MetricRecord | ConfigRecord
RecordDict = Mapping[str, Record]


@dataclass(frozen=True)
class ObjectSource:
    """An object's content in pieces that follow each other; the last may be a view of a large buffer."""

    pieces: tuple[Buffer, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole content."""
        return sum(len(piece) for piece in self.pieces)

    def content(self) -> bytes:
        """The whole content, copied together."""
        return b"".join(self.pieces)

    def parts(self, size: int) -> Iterable[Buffer]:
        """The content in parts of at most `size` bytes, without copying."""
        for piece in self.pieces:
            view = memoryview(piece)
            for start in range(0, len(view), size):
                yield view[start : start + size]


@dataclass(frozen=True)
class Bundle:
    """A tree and the contents of all its objects."""

    tree: Tree
    objects: Mapping[str, ObjectSource]


class _Cutter:
    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.objects: dict[str, ObjectSource] = {}

    def put(self, *pieces: Buffer) -> str:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        object_id = digest.hexdigest()
        self.objects.setdefault(object_id, ObjectSource(pieces))
        return object_id

    def array(self, array: Array) -> Tree:
        view = memoryview(array.data).cast("B")
        chunks = [
            self.put(encode_head("ArrayChunk", (), len(chunk)), chunk)
            for chunk in (view[start : start + self.chunk_size] for start in range(0, len(view), self.chunk_size))
        ]
        index = {object_id: place for place, object_id in enumerate(dict.fromkeys(chunks))}
        body = json.dumps(
            {
                "dtype": array.dtype,
                "shape": list(array.shape),
                "stype": array.stype,
                "arraychunk_ids": [index[object_id] for object_id in chunks],
            }
        ).encode()
        return Tree(self.put(encode_object("Array", tuple(index), body)), tuple(Tree(chunk) for chunk in index))

    def mapping(self, type_name: str, items: Mapping[str, Tree]) -> Tree:
        body = json.dumps({key: tree.object_id for key, tree in items.items()}).encode()
        children = {tree.object_id: tree for tree in items.values()}
        return Tree(self.put(encode_object(type_name, tuple(children), body)), tuple(children.values()))

    def record(self, record: Record) -> Tree:
        if isinstance(record, ArrayRecord):
            return self.mapping("ArrayRecord", {key: self.array(array) for key, array in record.items.items()})
        if isinstance(record, MetricRecord):
            return Tree(self.put(encode_object("MetricRecord", (), encode_metrics(record))))
        return Tree(self.put(encode_object("ConfigRecord", (), encode_configs(record))))

    def records(self, records: RecordDict) -> Tree:
        return self.mapping("RecordDict", {key: self.record(record) for key, record in records.items()})


def deflate(records: RecordDict, *, chunk_size: int = CHUNK_SIZE) -> Bundle:
    """The objects of a RecordDict. The arrays' buffers must not change as long as the bundle is used.

    TypeError for a value that a record cannot hold.
    """
    cutter = _Cutter(chunk_size)
    return Bundle(cutter.records(records), cutter.objects)


def deflate_message(
    metadata: Metadata,
    records: RecordDict | None = None,
    error: MessageError | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Bundle:
    """The objects of a message; the id of the tree's root is the message's id."""
    cutter = _Cutter(chunk_size)
    content = None if records is None else cutter.records(records)
    root = cutter.put(encode_message_object(metadata, content.object_id if content else None, error))
    return Bundle(Tree(root, (content,) if content else ()), cutter.objects)


def encode_metrics(record: MetricRecord) -> bytes:
    """The body of a MetricRecord object."""
    proto = records_pb2.MetricRecord()
    for key, value in record.items.items():
        item = proto.items.add(key=key)
        _encode(item.value, value, (float, int), key)
    return proto.SerializeToString(deterministic=True)


def encode_configs(record: ConfigRecord) -> bytes:
    """The body of a ConfigRecord object."""
    proto = records_pb2.ConfigRecord()
    for key, value in record.items.items():
        item = proto.items.add(key=key)
        _encode(item.value, value, (bool, int, float, str, bytes), key)
    return proto.SerializeToString(deterministic=True)


_ARMS: Final[Mapping[type, tuple[str, str]]] = {
    bool: ("bool", "bool_list"),
    int: ("sint64", "sint_list"),
    float: ("double", "double_list"),
    str: ("string", "string_list"),
    bytes: ("bytes", "bytes_list"),
}


def _encode(proto: Any, value: Any, kinds: tuple[type, ...], key: str) -> None:
    """Sets the arm of the value's type. An empty list takes the first kind's arm, as in Flower."""
    values = value if isinstance(value, list) else [value]
    for kind in kinds:
        if all(isinstance(entry, kind) and (kind is bool or not isinstance(entry, bool)) for entry in values):
            break
    else:
        raise TypeError(
            f"The record's value {key!r} is of a type that cannot be sent; use {', '.join(k.__name__ for k in kinds)}, "
            "or a list of one of them."
        )
    single, several = _ARMS[kind]
    if kind is int and any(entry > _INT64_MAX for entry in values):
        single, several = "uint64", "uint_list"
    if isinstance(value, list):
        arm = getattr(proto, several)
        arm.SetInParent()
        arm.vals.extend(values)
    else:
        setattr(proto, single, value)


def decode_metrics(body: bytes) -> MetricRecord:
    """From the body of a MetricRecord object."""
    return MetricRecord(_decode(records_pb2.MetricRecord, body))


def decode_configs(body: bytes) -> ConfigRecord:
    """From the body of a ConfigRecord object."""
    return ConfigRecord(_decode(records_pb2.ConfigRecord, body))


_P = TypeVar("_P", records_pb2.MetricRecord, records_pb2.ConfigRecord)


def _decode(kind: type[_P], body: bytes) -> dict[str, Any]:
    try:
        proto = kind.FromString(body)
    except DecodeError as error:
        raise ObjectError(f"The {kind.__name__} object's body cannot be read.") from error
    items: dict[str, Any] = {}
    for item in proto.items:
        arm = item.value.WhichOneof("value")
        if arm is None:
            raise ObjectError(f"The {kind.__name__}'s entry {item.key!r} has no value.")
        value = getattr(item.value, arm)
        items[item.key] = list(value.vals) if arm.endswith("_list") else value
    return items


def inflate(tree: Tree, get: Callable[[str], Buffer]) -> dict[str, Record]:
    """The RecordDict whose objects `get` knows by id.

    ObjectError where an object is of the wrong type, has other children than the tree says, or holds a pickled array.
    Hashes are not computed again: whoever received the objects has verified them.
    """
    records: dict[str, Record] = {}
    for key, child in _mapping(tree, "RecordDict", get).items():
        content = get(child.object_id)
        head = parse_head(content, len(content))
        body = bytes(content[head.head_length :]) if head.type_name != "ArrayRecord" else b""
        if head.type_name == "ArrayRecord":
            arrays = _mapping(child, "ArrayRecord", get)
            records[key] = ArrayRecord({name: _inflate_array(array, get) for name, array in arrays.items()})
        elif head.type_name == "MetricRecord":
            records[key] = decode_metrics(body)
        elif head.type_name == "ConfigRecord":
            records[key] = decode_configs(body)
        else:
            raise ObjectError(f"A RecordDict cannot hold a {head.type_name} object.")
    return records


def inflate_message(
    tree: Tree, get: Callable[[str], Buffer]
) -> tuple[Metadata, MessageError | None, dict[str, Record] | None]:
    """The message whose objects `get` knows by id; checked like `inflate`."""
    metadata, error, content_id = decode_message_object(get(tree.object_id))
    if [child.object_id for child in tree.children] != ([content_id] if content_id else []):
        raise ObjectError("The message's tree does not belong to its Message object.")
    return metadata, error, inflate(tree.children[0], get) if tree.children else None


def metric_records(tree: Tree, get: Callable[[str], Buffer | None]) -> dict[str, MetricRecord]:
    """Only the MetricRecords of a message's tree, by key; `get` may answer None for objects that are not at hand."""
    found: dict[str, MetricRecord] = {}
    for content_tree in tree.children:
        content = get(content_tree.object_id)
        if content is None:
            continue
        for key, child_id in _keys(content, "RecordDict").items():
            child = get(child_id)
            if child is None:
                continue
            head = parse_head(child, len(child))
            if head.type_name == "MetricRecord":
                found[key] = decode_metrics(bytes(child[head.head_length :]))
    return found


def _keys(content: Buffer, type_name: str) -> dict[str, str]:
    head = parse_head(content, len(content))
    if head.type_name != type_name:
        raise ObjectError(f"There is a {head.type_name} object where a {type_name} belongs.")
    keys = _json(content, head.head_length, type_name)
    if (
        not all(isinstance(child, str) for child in keys.values())
        or tuple(dict.fromkeys(keys.values())) != head.children
    ):
        raise ObjectError(f"The {type_name} object's body does not fit its children.")
    return keys


def _json(content: Buffer, start: int, type_name: str) -> dict[str, Any]:
    try:
        value = json.loads(bytes(content[start:]))
    except (ValueError, RecursionError) as error:
        raise ObjectError(f"The {type_name} object's body is not JSON.") from error
    if not isinstance(value, dict):
        raise ObjectError(f"The {type_name} object's body is not a JSON object.")
    return value


def _mapping(tree: Tree, type_name: str, get: Callable[[str], Buffer]) -> dict[str, Tree]:
    keys = _keys(get(tree.object_id), type_name)
    below = {child.object_id: child for child in tree.children}
    if set(below) != set(keys.values()):
        raise ObjectError(f"The tree gives a {type_name} object other children than its content does.")
    return {key: below[child_id] for key, child_id in keys.items()}


def _inflate_array(tree: Tree, get: Callable[[str], Buffer]) -> Array:
    content = get(tree.object_id)
    head = parse_head(content, len(content))
    if head.type_name != "Array":
        raise ObjectError(f"There is a {head.type_name} object where an Array belongs.")
    body = _json(content, head.head_length, "Array")
    dtype, shape, stype, places = (body.get(key) for key in ("dtype", "shape", "stype", "arraychunk_ids"))
    if (
        not isinstance(dtype, str)
        or not isinstance(stype, str)
        or not isinstance(shape, list)
        or not all(isinstance(size, int) and size >= 0 for size in shape)
        or not isinstance(places, list)
        or not all(isinstance(place, int) and 0 <= place < len(head.children) for place in places)
    ):
        raise ObjectError("The Array object's body lacks dtype, shape, stype or chunks.")
    chunks: list[memoryview] = []
    for place in places:
        chunk = get(head.children[place])
        chunk_head = parse_head(chunk, len(chunk))
        if chunk_head.type_name != "ArrayChunk":
            raise ObjectError(f"There is a {chunk_head.type_name} object where an ArrayChunk belongs.")
        chunks.append(memoryview(chunk)[chunk_head.head_length :])
    data: Buffer = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if stype == NUMPY:
        refuse_pickle(data)
    return Array(dtype, tuple(shape), data, stype)


def refuse_pickle(data: Buffer) -> None:
    """ObjectError for an NPY file of Python objects: reading one would run the sender's code."""
    magic = bytes(data[:8])
    if magic[:6] != b"\x93NUMPY":
        raise ObjectError("The array's data is not an NPY file.")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(bytes(data[8 : 8 + width]), "little")
    try:
        header = ast.literal_eval(bytes(data[8 + width : 8 + width + min(length, 65536)]).decode("latin-1").strip())
        descr = header["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ObjectError("The array's NPY header cannot be read.") from error
    if "O" in json.dumps(descr):
        raise ObjectError("The array holds pickled Python objects; send arrays of numbers, booleans or strings.")
