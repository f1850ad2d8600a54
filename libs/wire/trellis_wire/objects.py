"""Content-addressed objects, version 1: how every payload travels between Flower 1.20-1.42 peers.

An object's content is ``head + 0x00 + body``; the head is the UTF-8 text ``"<type> <child ids joined by commas>
<length of body>"`` and the object's id is the lowercase hex SHA-256 of the whole content. Objects form trees
(Message -> RecordDict -> records -> Array -> ArrayChunk); an `ObjectTree` message spells a tree out with repetition.

Everything here works on bytes alone and treats them as hostile: sizes, depths and counts are bounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import message_pb2

Buffer = bytes | bytearray | memoryview

OBJECT_TYPES: Final = frozenset(
    {"ArrayChunk", "Array", "ArrayRecord", "MetricRecord", "ConfigRecord", "RecordDict", "Message"}
)
LEAF_TYPES: Final = frozenset({"ArrayChunk", "MetricRecord", "ConfigRecord"})

MAX_HEAD_BYTES: Final = 4 * 1024 * 1024
"""Enough to name 64,000 children: an array of 320 GB in 5 MiB chunks."""
MAX_TREE_DEPTH: Final = 8
"""Levels; Flower's own trees have five."""
MAX_TREE_NODES: Final = 65_536
"""320 GB in chunks of 5 MiB. A SuperLink writes a row for each, and other writes wait for that."""

_DIVIDER = 0
_HEAD = re.compile(
    rb"(?P<type>[A-Za-z]{1,64}) (?P<children>(?:[0-9a-f]{64}(?:,[0-9a-f]{64})*)?) (?P<length>0|[1-9][0-9]{0,18})"
)
_OBJECT_ID = re.compile(r"[0-9a-f]{64}")


class ObjectError(ValueError):
    """An object or a tree is not what it claims to be; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What an object says of itself before its body."""

    type_name: str
    children: tuple[str, ...]
    body_length: int
    head_length: int  # bytes before the body, divider included

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        return self.head_length + self.body_length


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """An object's content in two pieces, so that a large body need not be copied to get its head in front of it."""

    head: bytes  # divider included
    body: Buffer

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        return len(self.head) + len(self.body)

    def content(self) -> bytes:
        """The whole object in one copy; for objects known to be small."""
        return b"".join((self.head, self.body))

    def parts(self, size: int) -> Iterator[Buffer]:
        """The content in parts of `size` bytes, the last one shorter: those with the head copied, the others views."""
        taken = -len(self.head) % size  # fills the part that the head ends in
        body = memoryview(self.body)
        first = b"".join((self.head, body[:taken]))
        for start in range(0, len(first), size):
            yield first[start : start + size]
        for start in range(taken, len(body), size):
            yield body[start : start + size]


def encode_head(type_name: str, children: Sequence[str], body_length: int) -> bytes:
    """The bytes in front of a body, divider included."""
    return f"{type_name} {','.join(children)} {body_length}\0".encode()


def encode_object(type_name: str, children: Sequence[str], body: Buffer) -> bytes:
    """The content of an object; `children` in order and without repetition."""
    return b"".join((encode_head(type_name, children, len(body)), body))


def object_id(*content: Buffer) -> str:
    """The id of the object whose content is given, in one or several pieces."""
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


def is_object_id(text: str) -> bool:
    """Whether `text` has the form of an object id."""
    return _OBJECT_ID.fullmatch(text) is not None


def parse_head(prefix: Buffer, total: int) -> ObjectHead:
    """Read the head of an object of `total` bytes from its first bytes, which must reach past the divider.

    Raises ObjectError when there is no head in the first MAX_HEAD_BYTES, or one that contradicts `total`.
    """
    divider = _find_divider(prefix)
    if divider < 0:
        raise ObjectError("The object has no head: no zero byte ends it; send it again as head, zero byte and body.")
    match = _HEAD.fullmatch(bytes(prefix[:divider]))
    if match is None:
        raise ObjectError("The object's head is not a type, child ids and a length; send it in Flower's format.")
    type_name = match["type"].decode()
    if type_name not in OBJECT_TYPES:
        raise ObjectError(f"The object's type {type_name!r} is unknown; allowed are {', '.join(sorted(OBJECT_TYPES))}.")
    children = tuple(match["children"].decode().split(",")) if match["children"] else ()
    if children and type_name in LEAF_TYPES:
        raise ObjectError(f"The object is of type {type_name} and names children, which this type cannot have.")
    head = ObjectHead(type_name, children, int(match["length"]), divider + 1)
    if head.size != total:
        raise ObjectError(
            f"The object's head announces a body of {head.body_length} bytes and {total - head.head_length} follow; "
            "send the whole object."
        )
    return head


def _find_divider(prefix: Buffer) -> int:
    """Where the head ends; nearly all heads are short, so that little is copied to search in."""
    found = bytes(prefix[:4096]).find(_DIVIDER)
    return found if found >= 0 else bytes(prefix[:MAX_HEAD_BYTES]).find(_DIVIDER)


def verify_object(expected_id: str, content: Buffer) -> ObjectHead:
    """The head of a whole object whose hash, head and length are checked. Raises ObjectError."""
    _require_id(expected_id, hashlib.sha256(content).hexdigest())
    return parse_head(content, len(content))


def _require_id(expected: str, found: str) -> None:
    if expected != found:
        raise ObjectError(f"The object announced as {expected} has the hash {found}; send it again unaltered.")


class PartVerifier:
    """Checks an object that arrives in parts, keeping nothing of it but its head.

    `size` is what the sender announced for the whole object; `head` is known as soon as the divider arrived.
    """

    def __init__(self, expected_id: str, size: int) -> None:
        self.object_id = expected_id
        self.size = size
        self.received = 0
        self.head: ObjectHead | None = None
        self._digest = hashlib.sha256()
        self._prefix = bytearray()

    def feed(self, part: Buffer) -> None:
        """Take the next bytes. Raises ObjectError as soon as the object cannot be right any more."""
        self.received += len(part)
        if self.received > self.size:
            raise ObjectError(f"The object {self.object_id} is larger than the {self.size} bytes announced for it.")
        self._digest.update(part)
        if self.head is None and not self._prefix and _DIVIDER in bytes(part[:4096]):  # nearly always
            self.head = parse_head(part[:4096], self.size)
        if self.head is None:
            start = bytes(part[: MAX_HEAD_BYTES - len(self._prefix)])
            self._prefix += start
            if _DIVIDER in start or len(self._prefix) >= min(MAX_HEAD_BYTES, self.size):
                self.head = parse_head(self._prefix, self.size)
                self._prefix.clear()

    def finish(self) -> ObjectHead:
        """The head of the object, whose every byte has been fed. Raises ObjectError."""
        if self.received != self.size:
            raise ObjectError(
                f"The object {self.object_id} ended after {self.received} of {self.size} bytes; send it all."
            )
        _require_id(self.object_id, self._digest.hexdigest())
        if self.head is None:
            raise ObjectError(f"The object {self.object_id} is empty; send it as head, zero byte and body.")
        return self.head


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree under one object, its children in order; an object below two parents appears under both."""

    object_id: str
    children: tuple[Tree, ...] = ()

    def post_order(self) -> list[str]:
        """Every object id once, children before their parents, the root last."""
        seen: dict[str, None] = {}
        stack: list[tuple[Tree, bool]] = [(self, False)]
        while stack:
            tree, expanded = stack.pop()
            if expanded:
                seen[tree.object_id] = None
            elif tree.object_id not in seen:
                stack.append((tree, True))
                stack.extend((child, False) for child in reversed(tree.children))
        return list(seen)

    def nodes(self) -> dict[str, Tree]:
        """Every object id with (one copy of) the tree below it."""
        found: dict[str, Tree] = {}
        stack = [self]
        while stack:
            tree = stack.pop()
            if tree.object_id not in found:
                found[tree.object_id] = tree
                stack.extend(tree.children)
        return found

    @classmethod
    def from_edge(cls, tree: message_pb2.ObjectTree) -> Tree:
        """Read Flower's form of a tree. Raises ObjectError when it is malformed, cyclic, too deep or too large."""
        return _read_tree(tree)

    @classmethod
    def from_appio(cls, tree: appio_pb2.Tree) -> Tree:
        """Read the interior protocol's form of a tree. Raises ObjectError as from_edge does."""
        return _read_tree(tree)

    def to_edge(self) -> message_pb2.ObjectTree:
        """Flower's form of this tree."""
        root = message_pb2.ObjectTree()
        _fill(root, self)
        return root

    def to_appio(self) -> appio_pb2.Tree:
        """The interior protocol's form of this tree."""
        root = appio_pb2.Tree()
        _fill(root, self)
        return root


def _read_tree(root: message_pb2.ObjectTree | appio_pb2.Tree) -> Tree:
    count = 0
    known: dict[str, Tree] = {}

    def read(message: message_pb2.ObjectTree | appio_pb2.Tree, above: tuple[str, ...]) -> Tree:
        nonlocal count
        count += 1
        oid = message.object_id
        if count > MAX_TREE_NODES:
            raise ObjectError(f"The object tree has more than {MAX_TREE_NODES:,} nodes; send fewer, larger objects.")
        if len(above) >= MAX_TREE_DEPTH:
            raise ObjectError(f"The object tree is deeper than {MAX_TREE_DEPTH} levels; no Flower message is.")
        if not is_object_id(oid):
            raise ObjectError("The object tree holds an id that is not 64 lowercase hex digits; send object ids.")
        if oid in above:
            raise ObjectError(f"The object tree is cyclic: {oid} stands below itself; send the objects' own tree.")
        below = (*above, oid)
        tree = Tree(oid, tuple([read(child, below) for child in message.children]))
        first = known.setdefault(oid, tree)
        if first != tree:
            raise ObjectError(f"The object tree gives {oid} different children in two places; send its own ones.")
        return first  # repetitions share one instance

    return read(root, ())


def _fill(message: message_pb2.ObjectTree | appio_pb2.Tree, tree: Tree) -> None:
    message.object_id = tree.object_id
    for child in tree.children:
        _fill(message.children.add(), child)


def check_head(tree: Tree, head: ObjectHead) -> None:
    """Compare an object's own children with what a tree says of them. Raises ObjectError."""
    if head.children != tuple([child.object_id for child in tree.children]):
        raise ObjectError(
            f"The object {tree.object_id} has other children than its tree says; send the tree it belongs to."
        )
