"""A message on its way through the core, and what is small enough to travel along with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trellis_wire.messages import MessageError, Metadata
from trellis_wire.objects import Tree

INLINE_OBJECT = 64 * 1024
"""Bytes of an object that may travel along with its message, and that lives in its database row."""

INLINE_ANSWER = 1024 * 1024
"""Bytes of objects that travel along in one answer at most."""


@dataclass(frozen=True)
class Parcel:
    """A message: its metadata, the tree of its objects (root: its own Message object), and some of their contents."""

    metadata: Metadata
    tree: Tree
    error: MessageError | None = None
    objects: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """An app's Context: the tree of its RecordDict and some of the contents."""

    tree: Tree
    objects: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Pushed:
    """Answer to a push. `refusals` has an entry for each message in order, empty when it was taken; `missing` names
    each object whose content is still to come, once, children first."""

    refusals: Sequence[str]
    missing: Sequence[str]
