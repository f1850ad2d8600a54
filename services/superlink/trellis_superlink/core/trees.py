"""The table of objects: what refers to what, what is here, what is still awaited.

An object counts one reference for each distinct object that has it as a child, and one for each message or context
whose root it is. So a thousand messages with one model add a row each, whatever the model's size. All functions here
run inside a transaction. Whoever knows an object's SHA-256 may name it in a tree: nobody else's content has a hash
that could be guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import BindParameter, Connection, bindparam, delete, insert, select, update
from trellis_wire.objects import Tree

from trellis_superlink.core.errors import BadObject
from trellis_superlink.store.database import Tx
from trellis_superlink.store.tables import awaited, objects

_T = TypeVar("_T")
_BATCH = 500  # ids in one statement; SQLite takes 32,766 variables

# Statements are built once: building one costs four times as much as running it.
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_KNOWN = select(objects.c.object_id, objects.c.children, objects.c.size).where(objects.c.object_id.in_(_IDS))
_HELD = select(objects.c.object_id, objects.c.children, objects.c.refs, objects.c.location).where(
    objects.c.object_id.in_(_IDS)
)
_NEW = insert(objects)
_MORE = update(objects).where(objects.c.object_id == bindparam("id")).values(refs=objects.c.refs + bindparam("added"))
_FILL = (
    update(objects)
    .where(objects.c.object_id == bindparam("id"))
    .values(size=bindparam("length"), content=bindparam("bytes"))
)
_FREE = delete(objects).where(objects.c.object_id.in_(_IDS))
_AWAIT = insert(awaited)
_FORGET = delete(awaited).where(awaited.c.object_id.in_(_IDS) | awaited.c.top_id.in_(_IDS))
_AWAITED_BELOW = select(awaited.c.object_id, awaited.c.top_id).where(awaited.c.top_id.in_(_IDS))
_TOPS_WAITING = select(awaited.c.top_id).where(awaited.c.top_id.in_(_IDS)).distinct()
_TOPS_OF = select(awaited.c.top_id).where(awaited.c.object_id.in_(_IDS))
_ARRIVED = delete(awaited).where(awaited.c.object_id.in_(_IDS))


def batches(items: Iterable[_T], size: int = _BATCH) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass(frozen=True)
class Planting:
    """A tree to be registered. `tops` are the ids under which a message waits for its objects: its own object's, and
    its content's; `contents` are verified contents that came along."""

    tree: Tree
    tops: Sequence[str]
    contents: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class _Seen:
    children: tuple[str, ...]
    known: bool  # has a row
    size: int | None  # None: content not here
    added: int = 0  # references to add
    content: bytes | None = None  # to be written


@dataclass(frozen=True)
class Registered:
    """`missing`: ids whose content is still to come, children first. `completed`: tops known before that the contents
    given have completed. `sizes`: bytes of each object, None for the missing."""

    missing: list[str]
    completed: list[str]
    sizes: Mapping[str, int | None]


def register(tx: Tx, plantings: Sequence[Planting]) -> Registered:
    """Adds one reference to each root and whatever rows are new.

    BadObject when a tree gives an object other children than it is known to have.
    """
    seen: dict[str, _Seen] = {}
    order: dict[str, None] = {}
    claimed: dict[str, tuple[str, ...]] = {}
    for planting in plantings:
        nodes = planting.tree.nodes()
        for object_id in planting.tree.post_order():
            children = tuple(dict.fromkeys(child.object_id for child in nodes[object_id].children))
            if claimed.setdefault(object_id, children) != children:
                raise BadObject(f"Object {object_id[:16]}... has different children in different trees.")
            order[object_id] = None
    for batch in batches(order):
        for row in tx.conn.execute(_KNOWN, {"ids": batch}):
            seen[row.object_id] = _Seen(split(row.children), True, row.size)
    for object_id, children in claimed.items():
        entry = seen.get(object_id)
        if entry is None:
            seen[object_id] = _Seen(children, False, None)
            # A new parent holds its children; one that is known has held them since it came.
        elif entry.children != children:
            raise BadObject(f"Object {object_id[:16]}... is known to have other children.")
    for entry in seen.values():
        if not entry.known:
            for child in entry.children:
                seen[child].added += 1
    arrived: list[str] = []
    for planting in plantings:
        seen[planting.tree.object_id].added += 1
        for object_id, content in planting.contents.items():
            entry = seen[object_id]
            if entry.size is None:
                entry.size, entry.content = len(content), content
                if entry.known:
                    arrived.append(object_id)
    _write(tx, seen)
    missing = [object_id for object_id in order if seen[object_id].size is None]
    if missing:
        _await(tx, plantings, set(missing))
    return Registered(missing, arrive(tx, arrived), {object_id: entry.size for object_id, entry in seen.items()})


def _write(tx: Tx, seen: Mapping[str, _Seen]) -> None:
    new = [
        {
            "object_id": object_id,
            "children": ",".join(entry.children),
            "refs": entry.added,
            "size": entry.size,
            "content": entry.content,
        }
        for object_id, entry in seen.items()
        if not entry.known
    ]
    more = [{"id": object_id, "added": entry.added} for object_id, entry in seen.items() if entry.known and entry.added]
    filled = [
        {"id": object_id, "length": entry.size, "bytes": entry.content}
        for object_id, entry in seen.items()
        if entry.known and entry.content is not None
    ]
    if new:
        tx.conn.execute(_NEW, new)
    if more:
        tx.conn.execute(_MORE, more)
    if filled:
        tx.conn.execute(_FILL, filled)


def _await(tx: Tx, plantings: Sequence[Planting], missing: set[str]) -> None:
    wanted: set[tuple[str, str]] = set()
    done: set[str] = set()
    for planting in plantings:
        nodes = planting.tree.nodes()
        for top in planting.tops:
            if top in done:
                continue
            done.add(top)
            # The message's own object waits for itself only: its content has a top of its own.
            below = [top] if top == planting.tree.object_id and len(planting.tops) > 1 else nodes[top].nodes()
            wanted.update((object_id, top) for object_id in below if object_id in missing)
    for batch in batches(done):
        known = tx.conn.execute(_AWAITED_BELOW, {"ids": batch})
        wanted.difference_update((row.object_id, row.top_id) for row in known)
    if wanted:
        tx.conn.execute(_AWAIT, [{"object_id": object_id, "top_id": top} for object_id, top in wanted])


def arrive(tx: Tx, object_ids: Sequence[str]) -> list[str]:
    """Nobody awaits these any more; the tops that have become complete by that."""
    if not object_ids:
        return []
    tops: set[str] = set()
    for batch in batches(object_ids):
        tops.update(tx.conn.scalars(_TOPS_OF, {"ids": batch}))
        tx.conn.execute(_ARRIVED, {"ids": batch})
    return sorted(tops - waiting(tx.conn, tops))


def waiting(conn: Connection, tops: Iterable[str]) -> set[str]:
    """Of these tops, those that still await an object."""
    found: set[str] = set()
    for batch in batches(tops):
        found.update(conn.scalars(_TOPS_WAITING, {"ids": batch}))
    return found


def missing_below(conn: Connection, tops: Iterable[str]) -> list[str]:
    """What these tops still await."""
    found: dict[str, None] = {}
    for batch in batches(tops):
        for object_id in conn.scalars(_AWAITED_BELOW, {"ids": batch}):
            found[object_id] = None
    return list(found)


def release(tx: Tx, roots: Iterable[str]) -> list[str]:
    """Takes one reference from each root (one for each time it is named) and frees what nothing refers to any more.
    Returns the files to be deleted after the commit."""
    locations: list[str] = []
    taken = Counter(roots)
    while taken:
        below: Counter[str] = Counter()
        freed: list[str] = []
        fewer: list[dict[str, object]] = []
        for batch in batches(taken):
            for row in tx.conn.execute(_HELD, {"ids": batch}):
                if row.refs > taken[row.object_id]:
                    fewer.append({"id": row.object_id, "added": -taken[row.object_id]})
                    continue
                freed.append(row.object_id)
                below.update(split(row.children))
                if row.location is not None:
                    locations.append(row.location)
        if fewer:
            tx.conn.execute(_MORE, fewer)
        for batch in batches(freed):
            tx.conn.execute(_FREE, {"ids": batch})
            tx.conn.execute(_FORGET, {"ids": batch})
        taken = below
    return locations


def load(conn: Connection, root: str) -> tuple[Tree, int]:
    """The tree below a root as the table knows it, and the bytes of its objects that are here. KeyError when a row is
    missing."""
    rows: dict[str, tuple[str, ...]] = {}
    size = 0
    level: set[str] = {root}
    while level:
        following: set[str] = set()
        for batch in batches(level):
            for row in conn.execute(_KNOWN, {"ids": batch}):
                children = split(row.children)
                rows[row.object_id] = children
                size += row.size or 0
                following.update(children)
        level = following - rows.keys()
    built: dict[str, Tree] = {}

    def build(object_id: str) -> Tree:
        tree = built.get(object_id)
        if tree is None:
            tree = built[object_id] = Tree(object_id, tuple([build(child) for child in rows[object_id]]))
        return tree

    return build(root), size


def split(children: str) -> tuple[str, ...]:
    return tuple(children.split(",")) if children else ()
