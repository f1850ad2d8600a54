"""Records without flwr: what an executor turns an app's messages into, and back.

`deflate` cuts records into content-addressed objects and `inflate` puts them together again, byte for byte as Flower
1.20-1.42 does. Large arrays are never copied on the way out: an object of theirs is a short head and a view of the
caller's buffer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from trellis_wire.messages import MessageError, Metadata, decode_message_object, encode_message_object
from trellis_wire.npy import refuse_pickle
from trellis_wire.objects import Buffer, ObjectError, ObjectSource, Tree, check_head, encode_head, parse_head
from trellis_wire.values import ConfigValue, MetricValue, decode_configs, decode_metrics, encode_configs, encode_metrics

CHUNK_SIZE: Final = 5 * 1024 * 1024
"""Bytes of an array in one object (Flower 1.23-1.42; receivers take any size)."""
NUMPY: Final = "numpy.ndarray"

_HASH_THREADS: Final = min(4, os.cpu_count() or 1)
_WORTH_THREADS: Final = 4  # chunks: from here on hashing side by side pays for starting threads

Get = Callable[[str], Buffer]


@dataclass(frozen=True)
class Array:
    """An array as it travels: for `stype` "numpy.ndarray", `data` is the bytes of an NPY file (header and buffer)."""

    dtype: str
    shape: tuple[int, ...]
    data: Buffer
    stype: str = NUMPY


@dataclass(frozen=True)
class ArrayRecord:
    """Named arrays, in order."""

    items: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricRecord:
    """Named numbers and lists of numbers, in order."""

    items: Mapping[str, MetricValue] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigRecord:
    """Named scalars and lists of scalars, in order."""

    items: Mapping[str, ConfigValue] = field(default_factory=dict)


Record = ArrayRecord | MetricRecord | ConfigRecord
RecordDict = Mapping[str, Record]


@dataclass(frozen=True)
class Bundle:
    """A tree and the contents of all its objects."""

    tree: Tree
    objects: Mapping[str, ObjectSource]


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
    """The objects of a message with either records or an error; the id of the tree's root is the message's id."""
    cutter = _Cutter(chunk_size)
    content = None if records is None else cutter.records(records)
    root = cutter.put(b"", encode_message_object(metadata, content.object_id if content else None, error))
    return Bundle(Tree(root, (content,) if content else ()), cutter.objects)


class _Cutter:
    """Collects the objects of one bundle."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.objects: dict[str, ObjectSource] = {}

    def put(self, head: bytes, body: Buffer) -> str:
        oid = _hash(head, body)
        self.objects.setdefault(oid, ObjectSource(head, body))
        return oid

    def put_object(self, type_name: str, children: Sequence[str], body: bytes) -> str:
        return self.put(encode_head(type_name, children, len(body)), body)

    def records(self, records: RecordDict) -> Tree:
        return self.mapping("RecordDict", {key: self.record(record) for key, record in records.items()})

    def record(self, record: Record) -> Tree:
        if isinstance(record, ArrayRecord):
            return self.mapping("ArrayRecord", {key: self.array(array) for key, array in record.items.items()})
        if isinstance(record, MetricRecord):
            return Tree(self.put_object("MetricRecord", (), encode_metrics(record.items)))
        return Tree(self.put_object("ConfigRecord", (), encode_configs(record.items)))

    def mapping(self, type_name: str, items: Mapping[str, Tree]) -> Tree:
        body = json.dumps({key: tree.object_id for key, tree in items.items()}).encode()
        children = {tree.object_id: tree for tree in items.values()}
        return Tree(self.put_object(type_name, tuple(children), body), tuple(children.values()))

    def array(self, array: Array) -> Tree:
        chunks = self.chunks(memoryview(array.data).cast("B"))
        index = {oid: place for place, oid in enumerate(dict.fromkeys(chunks))}
        body = json.dumps(
            {
                "dtype": array.dtype,
                "shape": list(array.shape),
                "stype": array.stype,
                "arraychunk_ids": [index[oid] for oid in chunks],
            }
        ).encode()
        return Tree(self.put_object("Array", tuple(index), body), tuple([Tree(oid) for oid in index]))

    def chunks(self, data: memoryview) -> list[str]:
        views = [data[start : start + self.chunk_size] for start in range(0, len(data), self.chunk_size)]
        heads = [encode_head("ArrayChunk", (), len(view)) for view in views]
        if len(views) < _WORTH_THREADS:
            return list(map(self.put, heads, views))
        with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="deflate") as pool:
            ids = list(pool.map(_hash, heads, views))
        for oid, head, view in zip(ids, heads, views, strict=True):
            self.objects.setdefault(oid, ObjectSource(head, view))
        return ids


def _hash(head: bytes, body: Buffer) -> str:
    digest = hashlib.sha256(head)
    digest.update(body)  # releases the interpreter's lock for large bodies
    return digest.hexdigest()


def join(chunks: Iterable[Buffer]) -> Buffer:
    """An array's data in one buffer: a single chunk as it is, several ones appended to each other."""
    first: Buffer | None = None
    whole: bytearray | None = None
    for chunk in chunks:
        if first is None:
            first = chunk
        else:
            whole = bytearray(first) if whole is None else whole
            whole += chunk
    return whole if whole is not None else first if first is not None else b""


def inflate(tree: Tree, get: Get, *, assemble: Callable[[Iterable[Buffer]], Buffer] = join) -> dict[str, Record]:
    """The RecordDict whose objects `get` knows by id.

    `assemble` makes one buffer of an array's chunks; they come one by one, so that who assembles them elsewhere (in
    shared memory, say) needs room for one chunk only. ObjectError where an object is of the wrong type, has other
    children than the tree says, or holds a pickled array. Hashes are not computed again: whoever received the objects
    has verified them.
    """
    records: dict[str, Record] = {}
    for key, child in _mapping(tree, "RecordDict", get).items():
        type_name, body = _open(child, get)
        if type_name == "ArrayRecord":
            arrays = _mapping(child, "ArrayRecord", get)
            records[key] = ArrayRecord({name: _array(array, get, assemble) for name, array in arrays.items()})
        elif type_name == "MetricRecord":
            records[key] = MetricRecord(decode_metrics(bytes(body)))
        elif type_name == "ConfigRecord":
            records[key] = ConfigRecord(decode_configs(bytes(body)))
        else:
            raise ObjectError(f"A RecordDict holds the {type_name} object {child.object_id}; send records there.")
    return records


def inflate_message(
    tree: Tree, get: Get, *, assemble: Callable[[Iterable[Buffer]], Buffer] = join
) -> tuple[Metadata, MessageError | None, dict[str, Record] | None]:
    """The message whose objects `get` knows by id; checked like `inflate`."""
    content = get(tree.object_id)
    metadata, error, content_id = decode_message_object(content)
    check_head(tree, parse_head(content, len(content)))
    if content_id is None:
        return metadata, error, None
    return metadata, error, inflate(tree.children[0], get, assemble=assemble)


def metric_records(tree: Tree, get: Callable[[str], Buffer | None]) -> dict[str, MetricRecord]:
    """Only the MetricRecords of a message's tree, by key; `get` may answer None for objects that are not at hand."""
    found: dict[str, MetricRecord] = {}
    for content_tree in tree.children:
        content = get(content_tree.object_id)
        if content is None:
            continue
        for key, child in _keyed(content_tree, "RecordDict", content).items():
            record = get(child.object_id)
            head = None if record is None else parse_head(record, len(record))
            if record is not None and head is not None and head.type_name == "MetricRecord":
                found[key] = MetricRecord(decode_metrics(bytes(record[head.head_length :])))
    return found


def _open(tree: Tree, get: Get) -> tuple[str, memoryview]:
    """An object's type and body, once its head agrees with the tree."""
    return _split(tree, get(tree.object_id))


def _split(tree: Tree, content: Buffer) -> tuple[str, memoryview]:
    head = parse_head(content, len(content))
    check_head(tree, head)
    return head.type_name, memoryview(content)[head.head_length :]


def _body(tree: Tree, type_name: str, content: Buffer) -> memoryview:
    found, body = _split(tree, content)
    if found != type_name:
        raise ObjectError(f"The object {tree.object_id} is of type {found}; send one of type {type_name} there.")
    return body


def _mapping(tree: Tree, type_name: str, get: Get) -> dict[str, Tree]:
    return _keyed(tree, type_name, get(tree.object_id))


def _keyed(tree: Tree, type_name: str, content: Buffer) -> dict[str, Tree]:
    ids = _json(_body(tree, type_name, content), type_name)
    below = {child.object_id: child for child in tree.children}
    if not all(isinstance(oid, str) for oid in ids.values()) or list(dict.fromkeys(ids.values())) != list(below):
        raise ObjectError(f"The {type_name} object {tree.object_id} names other children in its body than in its head.")
    return {key: below[oid] for key, oid in ids.items()}


def _json(body: memoryview, type_name: str) -> dict[str, Any]:
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ObjectError(f"The {type_name} object's body is not JSON; send it as Flower encodes it.") from error
    if not isinstance(value, dict):
        raise ObjectError(f"The {type_name} object's body is not a JSON object; send it as Flower encodes it.")
    return value


def _array(tree: Tree, get: Get, assemble: Callable[[Iterable[Buffer]], Buffer]) -> Array:
    body = _json(_body(tree, "Array", get(tree.object_id)), "Array")
    dtype, stype = body.get("dtype"), body.get("stype")
    shape, places = _sizes(body.get("shape")), _sizes(body.get("arraychunk_ids"))
    if not isinstance(dtype, str) or not isinstance(stype, str) or shape is None or places is None:
        raise ObjectError(f"The Array object {tree.object_id} lacks dtype, shape, stype or chunks; send all four.")
    if set(places) != set(range(len(tree.children))):
        raise ObjectError(f"The Array object {tree.object_id} does not use each of its chunks; send those it uses.")
    data = assemble(_body(chunk, "ArrayChunk", get(chunk.object_id)) for chunk in (tree.children[p] for p in places))
    if stype == NUMPY and len(data):
        refuse_pickle(data)
    return Array(dtype, shape, data, stype)


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(entry) is int and entry >= 0 for entry in value):
        return None
    return tuple(value)
