"""The data owner's own look at each reply before it leaves the site (`--reply-filter MODULE:FUNCTION`).

The function gets a `Reply` and gives back the records that may go: the same, fewer, or changed ones, or None to
withhold the reply. It runs in a thread of the SuperNode, on replies with content; it is the owner's code and trusted.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from trellis_wire.messages import Metadata
from trellis_wire.objects import Buffer, ObjectSource, Tree
from trellis_wire.records import Record, deflate_message, inflate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What an app on this site answers. `content`: the records by name, as `trellis_wire.records` has them; an array's
    `data` is the bytes of an NPY file (`numpy.load(io.BytesIO(array.data))`)."""

    run_id: int
    fab_id: str
    message_type: str
    content: Mapping[str, Record]


Function = Callable[[Reply], Mapping[str, Record] | None]


class FilterProblem(ValueError):
    """The function cannot be used; `str(error)` says why."""


class Withheld(Exception):
    """The reply does not leave the site; `str(error)` is for the run and tells nothing of the data."""


@dataclass(frozen=True)
class Filtered:
    """A reply as the filter left it."""

    metadata: Metadata
    tree: Tree
    objects: Mapping[str, ObjectSource]


class ReplyFilter:
    def __init__(self, name: str, function: Function) -> None:
        self._name = name
        self._function = function

    @classmethod
    def load(cls, name: str) -> ReplyFilter:
        """`name`: module:function, importable here. FilterProblem."""
        module, _, attribute = name.partition(":")
        if not module or not attribute:
            raise FilterProblem(f"{name!r} is no MODULE:FUNCTION")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever the owner's module raises while it is imported
            raise FilterProblem(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
        if not callable(function):
            raise FilterProblem(f"{name} is no function")
        return cls(name, function)

    async def __call__(self, fab_id: str, metadata: Metadata, tree: Tree, objects: Mapping[str, Buffer]) -> Filtered:
        """`tree` is the reply's, with a content; `objects` those of it. Withheld."""
        return await asyncio.to_thread(partial(self._apply, fab_id, metadata, tree, objects))

    def _apply(self, fab_id: str, metadata: Metadata, tree: Tree, objects: Mapping[str, Buffer]) -> Filtered:
        reply = Reply(metadata.run_id, fab_id, metadata.message_type, inflate(tree.children[0], objects.__getitem__))
        try:
            kept = self._function(reply)
            if kept is None:
                raise Withheld("The owner of this site's data withholds the reply.")
            bundle = deflate_message(replace(metadata, message_id=""), kept)
        except Withheld:
            raise
        except Exception as error:  # the owner's code; what it says may tell of the data and stays here
            _log.exception("The reply filter %s failed; the reply is withheld", self._name)
            raise Withheld("The reply filter of this site failed; its operator finds the reason in the log.") from error
        return Filtered(replace(metadata, message_id=bundle.tree.object_id), bundle.tree, bundle.objects)
