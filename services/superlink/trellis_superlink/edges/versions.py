"""What command lines of different releases want differently, as data; the one place where Control looks at a version.

Command lines from 1.30 on say their version (`flwr-package-version`). Those before cannot be told apart: an empty
ListNodes of 1.23 is that of 1.24. An operator whose users all have one such release says so (`--assume-cli-version`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from trellis_wire.bulk import varint

from trellis_superlink.core.principals import DEFAULT_FEDERATION

Version = tuple[int, int]
"""Major and minor."""

DEFAULT_NAMES = frozenset({"", DEFAULT_FEDERATION, "@none/default"})
"""What the releases call the one federation of a SuperLink without federation management (WIRE.md 3.3)."""

NAMED: Version = (1, 30)
"""The first release whose command line says its version."""

UNNAMED: Version = (1, 24)
"""What a command line without a version is taken for, where something has to be chosen."""


# ---- words -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dialect:
    """`since`: first release that speaks so."""

    since: Version
    federation: str  # the default federation's name in answers
    json_errors: bool  # whether error details may be JSON with a code


# Newest first.
DIALECTS: Sequence[Dialect] = (
    Dialect((1, 33), "@none/default", json_errors=True),
    Dialect((1, 26), "@none/default", json_errors=False),
    Dialect((1, 21), DEFAULT_FEDERATION, json_errors=False),
)


def dialect(version: Version | None) -> Dialect:
    """The dialect of a release."""
    wanted = version or UNNAMED
    return next((one for one in DIALECTS if one.since <= wanted), DIALECTS[-1])


# ---- layouts ---------------------------------------------------------------------------------------------------------

Layout = Mapping[int, str]
"""Field number -> where proto/edge has its value; dots lead into messages, and through all of a repeated field."""


@dataclass(frozen=True)
class Renumbered:
    """A message that releases number differently under one name (WIRE.md 1.4).

    `older`: first release -> its layout, newest first. From `settled` on it is as in proto/edge. `taken_for` is the
    release whose layout a caller without a version gets; None: the fields that mean the same to all such callers.
    """

    settled: Version
    older: Mapping[Version, Layout]
    taken_for: Version | None

    def layout(self, version: Version, settled: Layout) -> Layout:
        """That of a release."""
        if version >= self.settled:
            return settled
        return next((one for since, one in self.older.items() if since <= version), list(self.older.values())[-1])

    def unnamed(self, settled: Layout) -> Layout:
        """That of a caller without a version."""
        if self.taken_for is not None:
            return self.layout(self.taken_for, settled)
        spoken = [one for since, one in {self.settled: settled, **self.older}.items() if since < NAMED]
        return {number: path for number, path in spoken[0].items() if all(one.get(number) == path for one in spoken)}


_FEDERATION_OF_1_24 = {1: "name", 2: "members.account.id", 3: "nodes", 4: "runs"}

RENUMBERED: Mapping[str, Renumbered] = {
    "NodeInfo": Renumbered(
        (1, 24),
        {
            (1, 23): {
                1: "node_id",
                2: "owner_aid",
                3: "status",
                4: "registered_at",
                5: "last_activated_at",
                6: "last_deactivated_at",
                7: "unregistered_at",
                8: "online_until",
                9: "heartbeat_interval",
                10: "public_key",
            }
        },
        taken_for=UNNAMED,
    ),
    "Federation": Renumbered(
        (1, 27),
        {
            (1, 26): {**_FEDERATION_OF_1_24, 5: "description", 6: "members.account"},
            (1, 24): _FEDERATION_OF_1_24,
        },
        taken_for=None,
    ),
    "StreamRunEventsResponse": Renumbered(
        (1, 31), {(1, 28): {1: "task_event.event", 2: "task_event.data"}}, taken_for=(1, 28)
    ),
}


def encode(message: Message, version: Version | None) -> bytes:
    """The message as a release reads it; None: a caller that does not say its release."""
    if not _concerned(message.DESCRIPTOR):
        return message.SerializeToString()
    settled = {field.number: field.name for field in message.DESCRIPTOR.fields}
    change = RENUMBERED.get(message.DESCRIPTOR.name)
    layout: Layout = settled
    if change is not None:
        layout = change.unnamed(settled) if version is None else change.layout(version, settled)
    return b"".join(
        _field(number, holder, field, value, version)
        for number, path in layout.items()
        for holder, field, value in _reach(message, path)
    )


@cache
def _concerned(kind: Descriptor, above: frozenset[str] = frozenset()) -> bool:
    """Whether a message of this kind is renumbered or may hold one that is."""
    if kind.name in RENUMBERED:
        return True
    within = above | {kind.full_name}
    inner = [field.message_type for field in kind.fields if field.message_type is not None]
    return any(_concerned(one, within) for one in inner if one.full_name not in within)


def _reach(message: Message, path: str) -> Iterator[tuple[Message, Any, Any]]:
    """The values at the path, each with the message and the descriptor of the field that hold it."""
    name, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        values = list(getattr(message, name))
    else:
        values = [getattr(message, name)] if not field.has_presence or message.HasField(name) else []
    for value in values:
        if rest:
            yield from _reach(value, rest)
        else:
            yield message, field, value


def _field(number: int, holder: Message, field: Any, value: object, version: Version | None) -> bytes:
    """One field on the wire under another number; nothing for a value that proto3 leaves out."""
    if isinstance(value, Message):
        content = encode(value, version)
        return varint(number << 3 | 2) + varint(len(content)) + content
    alone = type(holder)(**{field.name: value}).SerializeToString()
    tag = len(varint(field.number << 3))
    return varint(number << 3 | alone[0] & 7) + alone[tag:] if alone else b""


_RELEASE = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])")


def parse(text: str) -> Version | None:
    """(1, 24) of "1.24" or "1.24.0"; None of anything else."""
    found = _RELEASE.match(text)
    return None if found is None else (int(found[1]), int(found[2]))
