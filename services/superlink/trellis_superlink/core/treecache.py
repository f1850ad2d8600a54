"""Trees of contents that are completely here: the same whoever asks, so they are kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import Connection
from trellis_wire.objects import Tree

from trellis_superlink.core import trees

_MAX_IDS = 200_000  # over all cached trees; some 25 MB


@dataclass(frozen=True)
class Content:
    """What a message carries. `size` in bytes of all its distinct objects."""

    tree: Tree
    ids: frozenset[str]
    size: int


class TreeCache:
    """Least recently used first out; used from the database's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: OrderedDict[str, Content] = OrderedDict()
        self._ids = 0

    def put(self, tree: Tree, size: int) -> Content:
        """A content that was just proved to be all here."""
        content = Content(tree, frozenset(tree.post_order()), size)
        with self._lock:
            if tree.object_id not in self._contents:
                self._contents[tree.object_id] = content
                self._ids += len(content.ids)
                while self._ids > _MAX_IDS and len(self._contents) > 1:
                    _root, oldest = self._contents.popitem(last=False)
                    self._ids -= len(oldest.ids)
        return content

    def get(self, conn: Connection, root: str) -> Content:
        """Only for a root whose objects are all here: before that a tree is a claim that nothing has proved. KeyError
        when it was freed."""
        with self._lock:
            content = self._contents.get(root)
            if content is not None:
                self._contents.move_to_end(root)
                return content
        return self.put(*trees.load(conn, root))
