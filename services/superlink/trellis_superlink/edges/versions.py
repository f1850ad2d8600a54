"""What command lines of different releases want differently; the one place where Control looks at a version.

Command lines from 1.30 on say their version (`flwr-package-version`). Those before are taken as one: what tells them
apart in `NodeInfo` and `Federation` (WIRE.md 1.4) cannot be seen in their requests, except that 1.24-1.25 ask for the
federation "default".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from trellis_wire.bulk import varint
from trellis_wire.pb.edge import control_pb2

from trellis_superlink.core.principals import DEFAULT_FEDERATION

DEFAULT_NAMES = frozenset({"", DEFAULT_FEDERATION, "@none/default"})
"""What the releases call the one federation of a SuperLink without federation management (WIRE.md 3.3)."""


@dataclass(frozen=True)
class Dialect:
    """`since`: first release (major, minor) that speaks so."""

    since: tuple[int, int]
    federation: str  # the default federation's name in answers
    json_errors: bool  # whether error details may be JSON with a code
    task_events: bool  # whether StreamRunEvents carries a TaskEvent, else two texts
    federation_of_1_27: bool  # whether Federation has the layout of 1.27 on, else that of 1.24-1.25


# Newest first.
DIALECTS: Sequence[Dialect] = (
    Dialect((1, 33), "@none/default", json_errors=True, task_events=True, federation_of_1_27=True),
    Dialect((1, 31), "@none/default", json_errors=False, task_events=True, federation_of_1_27=True),
    Dialect((1, 27), "@none/default", json_errors=False, task_events=False, federation_of_1_27=True),
    Dialect((1, 21), DEFAULT_FEDERATION, json_errors=False, task_events=False, federation_of_1_27=False),
)

UNNAMED = (1, 24)
"""What a command line without a version is taken for."""

UNNAMED_NEWER = (1, 27)
"""What it is taken for when it asks for a federation by a name that 1.24-1.25 do not have."""


def dialect(version: tuple[int, int] | None) -> Dialect:
    """The dialect of a release."""
    wanted = version or UNNAMED
    return next((one for one in DIALECTS if one.since <= wanted), DIALECTS[-1])


def federation_of_1_24(answer: control_pb2.ShowFederationResponse) -> bytes:
    """The answer with Federation as 1.24-1.25 number it: name 1, account ids 2, nodes 3, runs 4 (WIRE.md 1.4)."""
    federation = answer.federation
    fields: list[tuple[int, bytes]] = [(1, federation.name.encode())]
    fields += [(2, member.account.id.encode()) for member in federation.members]
    fields += [(3, _bytes_of(node)) for node in federation.nodes]
    fields += [(4, _bytes_of(run)) for run in federation.runs]
    return _encode([(1, _encode(fields)), (2, answer.now.encode())])


def encode_run_event(event: control_pb2.TaskEvent) -> bytes:
    """An item of StreamRunEvents from 1.31 on."""
    return _bytes_of(control_pb2.StreamRunEventsResponse(task_event=event))


def run_event_of_1_28(event: control_pb2.TaskEvent) -> bytes:
    """The same for 1.28-1.30: the event's name 1, its data 2 (WIRE.md 1.4)."""
    return _encode([(1, event.event.encode()), (2, event.data.encode())])


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()


def _encode(fields: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes([number << 3 | 2]) + varint(len(content)) + content for number, content in fields)
