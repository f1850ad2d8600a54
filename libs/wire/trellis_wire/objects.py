"""Content-addressed objects: Flower's object model v1, as every release from 1.20 to 1.42 reads and writes it.

The content of an object is ``head`` + NUL + ``body``; the head is the type name, the comma-joined ids of the children
and the length of the body, separated by single spaces. The id of an object is the lowercase hex SHA-256 of its whole
content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import message_pb2

Buffer = bytes | bytearray | memoryview

OBJECT_TYPES: Final = frozenset(
    {"ArrayChunk", "Array", "ArrayRecord", "MetricRecord", "ConfigRecord", "RecordDict", "Message"}
)
MAX_HEAD: Final = 8 * 1024 * 1024
"""Bytes of the longest head that is read: room for 120,000 children."""
MAX_DEPTH: Final = 8
"""Levels of a tree; a message has five (message, records, record, array, chunk)."""
MAX_NODES: Final = 200_000
"""Places in one tree."""

_ID = re.compile(r"[0-9a-f]{64}\Z")


class ObjectError(ValueError):
    """An object or a tree of objects is not what it claims to be; the text says what is wrong in one sentence."""


def is_object_id(text: str) -> bool:
    """Whether this is the form of an object id: 64 lowercase hex digits."""
    return _ID.match(text) is not None


@dataclass(frozen=True)
class ObjectHead:
    """What stands before an object's body. Lengths in bytes; `head_length` counts the divider too."""

    type_name: str
    children: tuple[str, ...]
    body_length: int
    head_length: int


def encode_head(type_name: str, children: Sequence[str], body_length: int) -> bytes:
    """The head of an object with its divider."""
    return f"{type_name} {','.join(children)} {body_length}".encode() + b"\0"


def encode_object(type_name: str, children: Sequence[str], body: Buffer) -> bytes:
    """The content of an object."""
    return b"".join((encode_head(type_name, children, len(body)), body))


def object_id(content: Buffer) -> str:
    """The id of an object with this content."""
    return hashlib.sha256(content).hexdigest()


def parse_head(prefix: Buffer, total: int | None = None) -> ObjectHead:
    """Reads the head from the first bytes of an object.

    `total` is the size of the whole content; where given, head and body have to add up to it.
    Raises ObjectError, also when the head does not end within `prefix`.
    """
    divider = bytes(prefix[:MAX_HEAD]).find(b"\0")
    if divider < 0:
        raise ObjectError("The object has no head: the byte that ends it is missing.")
    fields = bytes(prefix[:divider]).split(b" ")
    if len(fields) != 3:
        raise ObjectError("The object's head is not a type, its children and a length.")
    try:
        type_name, joined, length = (field.decode("ascii") for field in fields)
    except UnicodeDecodeError as error:
        raise ObjectError("The object's head holds bytes that are not ASCII.") from error
    if type_name not in OBJECT_TYPES:
        raise ObjectError(f"The object's type {type_name[:40]!r} is not one of Flower's.")
    children = tuple(joined.split(",")) if joined else ()
    if not all(is_object_id(child) for child in children):
        raise ObjectError("The object's head names a child that is no object id.")
    if not length.isdecimal() or (len(length) > 1 and length[0] == "0") or len(length) > 19:
        raise ObjectError(f"The object's head gives {length[:40]!r} as the length of the body.")
    head = ObjectHead(type_name, children, int(length), divider + 1)
    if total is not None and head.head_length + head.body_length != total:
        raise ObjectError(f"The object has {total - head.head_length} bytes of body, its head says {head.body_length}.")
    return head


def verify_object(expected_id: str, content: Buffer) -> ObjectHead:
    """The head of an object whose content has this id; ObjectError when it has another or is malformed."""
    if object_id(content) != expected_id:
        raise ObjectError(f"The content is not that of object {expected_id[:16]}...: its SHA-256 differs.")
    return parse_head(content, len(content))


class PartVerifier:
    """Verifies one object that arrives in parts, without keeping them.

    Feed the parts in order, then ask for the head. Raises ObjectError for too many or too few bytes, another hash or a
    malformed head; `size` is that of the whole content in bytes.
    """

    def __init__(self, expected_id: str, size: int) -> None:
        if not is_object_id(expected_id):
            raise ObjectError(f"{expected_id[:80]!r} is no object id.")
        self.expected_id = expected_id
        self.size = size
        self.received = 0
        self._hash = hashlib.sha256()
        self._prefix = bytearray()
        self._head: ObjectHead | None = None

    def feed(self, part: Buffer) -> None:
        """The next part."""
        if self.received + len(part) > self.size:
            raise ObjectError(f"Object {self.expected_id[:16]}... has more than the {self.size} bytes announced.")
        self.received += len(part)
        self._hash.update(part)
        if self._head is None:
            self._prefix += part
            if b"\0" in part:
                self._head = parse_head(self._prefix, self.size)
                self._prefix = bytearray()
            elif len(self._prefix) > MAX_HEAD:
                raise ObjectError("The object has no head: the byte that ends it is missing.")

    def finish(self) -> ObjectHead:
        """The head, once every part was fed."""
        if self.received != self.size:
            raise ObjectError(
                f"Object {self.expected_id[:16]}... has {self.received} bytes, {self.size} were announced."
            )
        if self._hash.hexdigest() != self.expected_id:
            raise ObjectError(f"The content is not that of object {self.expected_id[:16]}...: its SHA-256 differs.")
        if self._head is None:
            raise ObjectError("The object has no head: the byte that ends it is missing.")
        return self._head


@dataclass(frozen=True)
class Tree:
    """An object and, below it, every object that it is made of. The same id may stand in several places."""

    object_id: str
    children: tuple[Tree, ...] = ()

    def post_order(self) -> list[str]:
        """Every id once, children before their parents: the order in which objects are sent."""
        ids: dict[str, None] = {}
        stack: list[tuple[Tree, bool]] = [(self, False)]
        while stack:
            tree, expanded = stack.pop()
            if tree.object_id in ids:
                continue
            if expanded or not tree.children:
                ids[tree.object_id] = None
            else:
                stack.append((tree, True))
                stack.extend((child, False) for child in reversed(tree.children))
        return list(ids)

    def walk(self) -> Iterator[Tree]:
        """Every place of the tree, parents first."""
        stack = [self]
        while stack:
            tree = stack.pop()
            yield tree
            stack.extend(reversed(tree.children))

    @classmethod
    def from_edge(cls, proto: message_pb2.ObjectTree) -> Tree:
        """From the edge protocol. ObjectError for anything but a tree of object ids of bounded depth and size."""
        return _read(proto)

    @classmethod
    def from_appio(cls, proto: appio_pb2.Tree) -> Tree:
        """From the interior protocol, checked like `from_edge`."""
        return _read(proto)

    def to_edge(self) -> message_pb2.ObjectTree:
        """For the edge protocol."""
        return message_pb2.ObjectTree(object_id=self.object_id, children=[child.to_edge() for child in self.children])

    def to_appio(self) -> appio_pb2.Tree:
        """For the interior protocol."""
        return appio_pb2.Tree(object_id=self.object_id, children=[child.to_appio() for child in self.children])


def _read(proto: message_pb2.ObjectTree | appio_pb2.Tree) -> Tree:
    shapes: dict[str, tuple[str, ...]] = {}
    places = 0

    def read(node: message_pb2.ObjectTree | appio_pb2.Tree, above: tuple[str, ...]) -> Tree:
        nonlocal places
        places += 1
        if places > MAX_NODES:
            raise ObjectError(f"The object tree has more than {MAX_NODES} places.")
        if len(above) >= MAX_DEPTH:
            raise ObjectError(f"The object tree is deeper than {MAX_DEPTH} levels.")
        if not is_object_id(node.object_id):
            raise ObjectError(f"The object tree names {node.object_id[:80]!r}, which is no object id.")
        if node.object_id in above:
            raise ObjectError(f"The object tree is cyclic: {node.object_id[:16]}... stands below itself.")
        below = (*above, node.object_id)
        children = tuple(read(child, below) for child in node.children)
        ids = tuple(child.object_id for child in children)
        if shapes.setdefault(node.object_id, ids) != ids:
            raise ObjectError(f"The object tree gives {node.object_id[:16]}... different children in two places.")
        return Tree(node.object_id, children)

    return read(proto, ())


def check_tree(tree: Tree, head_of: Callable[[str], ObjectHead | None]) -> None:
    """Compares a tree with the heads of its objects, as far as `head_of` knows them (None: not known yet).

    Raises ObjectError when an object has other children than the tree says.
    """
    seen: set[str] = set()
    for place in tree.walk():
        if place.object_id in seen:
            continue
        seen.add(place.object_id)
        head = head_of(place.object_id)
        if head is not None and head.children != tuple(child.object_id for child in place.children):
            raise ObjectError(f"The object tree gives {place.object_id[:16]}... other children than its head does.")
