"""What a traced process received, sent and synced, and when: strace's output, and the HTTP/2 frames in it."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

# "-D": the program stays what it would be without, with its process id and signals; strace watches from aside.
STRACE = ("strace", "-D", "-f", "--seccomp-bpf", "-ttt", "-T", "-yy", "-s", "8388608")
TRACED = "recvmsg,sendmsg,fsync,fdatasync"

_TARGET = re.compile(r"(\w+)\(\d+<(.*?)>[,)]")
_OUTCOME = re.compile(r"(\d+)(?: \(.*\))? <([\d.]+)>$")
_UNFINISHED, _RESUMED = " <unfinished ...>", " resumed>"

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4; frames: 4.1
_HEAD = 9
_DATA = 0


def strace(output: Path) -> tuple[str, ...]:
    """What to put before the arguments of a program; ends a moment after it, with a line that says `exited`."""
    return (*STRACE, "-e", f"trace={TRACED}", "-o", str(output))


@dataclass(frozen=True)
class SystemCall:
    """One that succeeded: `target` is the path or the connection behind its descriptor; times in Unix seconds."""

    name: str
    target: str
    begun: float
    ended: float
    data: bytes  # received or sent


def system_calls(output: Path) -> list[SystemCall]:
    """All calls in the order in which they began."""
    waiting: dict[str, tuple[float, str]] = {}
    found: list[SystemCall] = []
    for line in output.read_text().splitlines():
        thread, at, text = line.split(maxsplit=2)
        begun = float(at)
        if text.endswith(_UNFINISHED):
            waiting[thread] = (begun, text.removesuffix(_UNFINISHED))
            continue
        if text.startswith("<... "):
            begun, start = waiting.pop(thread)
            text = start + text.partition(_RESUMED)[2]
        target = _TARGET.match(text)
        outcome = _OUTCOME.match(text.rpartition(" = ")[2])
        if target is not None and outcome is not None:  # else it failed, or is news of a signal or a thread's end
            size, took = int(outcome[1]), float(outcome[2])
            found.append(SystemCall(target[1], target[2], begun, begun + took, _moved(text)[:size]))
    return sorted(found, key=lambda call: call.begun)


def _moved(text: str) -> bytes:
    """The bytes in a call's buffers; a quotation mark inside one has a backslash."""
    buffers = [piece.partition('", iov_len=')[0] for piece in text.split('iov_base="')[1:]]
    return b"".join(ast.literal_eval(f'b"{buffer}"') for buffer in buffers)


@dataclass(frozen=True)
class Push:
    """A request and its answer: how many bytes came, when the last was there, and when the first of the answer left.

    Of a stream of requests: all of them, and the first answer.
    """

    size: int
    received: float
    answered: float


def pushes(calls: Iterable[SystemCall], port: int) -> list[list[Push]]:
    """The requests of each connection to a gRPC server at this port, in the order in which they were begun."""
    connections: dict[str, list[SystemCall]] = {}
    for call in calls:
        if call.name in ("recvmsg", "sendmsg") and f":{port}->" in call.target:
            connections.setdefault(call.target, []).append(call)
    return [_pushes(connection) for connection in connections.values()]


def _pushes(connection: Sequence[SystemCall]) -> list[Push]:
    requests: dict[int, tuple[int, float]] = {}
    for frame in _data([call for call in connection if call.name == "recvmsg"]):
        requests[frame.stream] = (requests.get(frame.stream, (0, 0.0))[0] + frame.size, frame.last.ended)
    answers: dict[int, float] = {}
    for frame in _data([call for call in connection if call.name == "sendmsg"]):
        answers.setdefault(frame.stream, frame.first.begun)
    return [Push(*requests[stream], answers[stream]) for stream in sorted(requests) if stream in answers]


@dataclass(frozen=True)
class _Frame:
    stream: int
    size: int
    first: SystemCall  # the one that moved its first byte
    last: SystemCall


def _data(calls: Sequence[SystemCall]) -> Iterable[_Frame]:
    """The frames of one direction of a connection that carry messages."""
    whole = b"".join(call.data for call in calls)
    ends = list(accumulate(len(call.data) for call in calls))
    at = len(_PREFACE) if whole.startswith(_PREFACE) else 0
    while at + _HEAD <= len(whole):
        size, stream = int.from_bytes(whole[at : at + 3]), int.from_bytes(whole[at + 5 : at + _HEAD])
        end = at + _HEAD + size
        if whole[at + 3] == _DATA and size and end <= len(whole):
            yield _Frame(stream, size, calls[bisect_right(ends, at)], calls[bisect_right(ends, end - 1)])
        at = end
