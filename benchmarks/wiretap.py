"""How many bytes crossed each hop, and when: the kernel's own counters of each TCP connection, read every few ms.

Nothing stands between the roles, so nothing is slowed down. The counters come from the kernel's socket diagnosis
(`sock_diag(7)`, struct `tcp_info`); only servers' ends are looked at, found by the port they listen on.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

_SOCK_DIAG_BY_FAMILY, _DUMP = 20, 0x301  # netlink message type; NLM_F_REQUEST | NLM_F_DUMP
_DONE, _ERROR = 3, 2
_INET_DIAG_INFO = 2
_ESTABLISHED = 1 << 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48s")
_ENDPOINTS = struct.Struct(">HH")  # in an answer after family, state, timer, retransmissions: own port, peer's port
_ANSWER_SIZE = 72
_ACKED, _RECEIVED = 120, 128  # offsets of tcpi_bytes_acked and tcpi_bytes_received


@dataclass(frozen=True)
class Connection:
    """One end of a TCP connection and what it has moved so far."""

    own_port: int
    peer_port: int
    inode: int
    sent: int  # bytes the peer has acknowledged
    received: int


def connections() -> list[Connection]:
    """All established TCP connections of this network namespace, both ends when both are here."""
    found: list[Connection] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diagnosis:  # 4: NETLINK_SOCK_DIAG
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, _ESTABLISHED, bytes(48))
            diagnosis.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + body)
            while _collect(diagnosis.recv(1 << 20), found):
                pass
    return found


def _collect(data: bytes, found: list[Connection]) -> bool:
    """Read one batch of answers; whether more will come."""
    offset = 0
    while offset < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if kind == _DONE:
            return False
        if kind == _ERROR:
            raise OSError("the kernel refuses to tell about its TCP connections (sock_diag)")
        start, end = offset + _HEADER.size, offset + length
        own, peer = _ENDPOINTS.unpack_from(data, start + 4)
        (inode,) = struct.unpack_from("=I", data, start + _ANSWER_SIZE - 4)
        attribute = start + _ANSWER_SIZE
        while attribute + 4 <= end:
            size, name = struct.unpack_from("=HH", data, attribute)
            if name == _INET_DIAG_INFO and size >= 4 + _RECEIVED + 8:
                sent, received = struct.unpack_from("=QQ", data, attribute + 4 + _ACKED)
                found.append(Connection(own, peer, inode, sent, received))
            attribute += (size + 3) & ~3
        offset += (length + 3) & ~3
    return True


@dataclass(frozen=True)
class Moved:
    """What one hop moved in a span of time: bytes, and when the first and last of them passed (seconds since epoch)."""

    bytes: int
    first: float
    last: float


@dataclass
class Wiretap:
    """Watches while used as a context manager.

    `hops` maps a listening port to a hop's name. Where two hops share a port (stock's HTTP port), `by_process` names
    the hop of the processes that call from elsewhere: pid -> name.
    """

    hops: Mapping[int, str]
    by_process: Mapping[int, str] = field(default_factory=dict)
    interval: float = 0.02  # seconds
    samples: list[tuple[float, dict[tuple[str, int, int], tuple[int, int]]]] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Wiretap":
        self._thread = threading.Thread(target=self._watch, name="wiretap", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self.interval):
            self.samples.append((time.time(), self._sample()))

    def _sample(self) -> dict[tuple[str, int, int], tuple[int, int]]:
        seen = connections()
        inodes = {(one.peer_port, one.own_port): one.inode for one in seen}
        return {
            (self._hop(one, inodes.get((one.own_port, one.peer_port), 0)), one.own_port, one.peer_port): (
                one.received,
                one.sent,
            )
            for one in seen
            if one.own_port in self.hops
        }

    def _hop(self, server: Connection, client_inode: int) -> str:
        if not self.by_process:
            return self.hops[server.own_port]
        if client_inode not in self._names:
            owners = (name for pid, name in self.by_process.items() if client_inode in _socket_inodes(pid))
            self._names[client_inode] = next(owners, self.hops[server.own_port])
        return self._names[client_inode]

    def moved(self, began: float, ended: float) -> dict[str, dict[str, Moved]]:
        """Between two times, for each hop: {"up" (to the server): ..., "down": ...}; 1 % at each end is left out."""
        growth: dict[tuple[str, str], list[tuple[float, int]]] = {}
        last: dict[tuple[str, int, int], tuple[int, int]] = {}
        for at, sample in self.samples:
            for key, (up, down) in sample.items():
                before = last.get(key, (0, 0))
                if began <= at <= ended + self.interval:
                    growth.setdefault((key[0], "up"), []).append((at, up - before[0]))
                    growth.setdefault((key[0], "down"), []).append((at, down - before[1]))
                last[key] = (up, down)
        result: dict[str, dict[str, Moved]] = {}
        for (hop, direction), steps in growth.items():
            total = sum(step for _, step in steps)
            passed, first, end = 0, began, began
            for at, step in steps:
                if passed < total * 0.01 <= passed + step:
                    first = at
                if passed < total * 0.99 <= passed + step:
                    end = at
                passed += step
            result.setdefault(hop, {})[direction] = Moved(total, first, end)
        return result


def _socket_inodes(pid: int) -> set[int]:
    inodes: set[int] = set()
    try:
        descriptors = list(os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return inodes  # the process has ended
    for descriptor in descriptors:
        try:
            target = os.readlink(descriptor.path)
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            inodes.add(int(target[8:-1]))
    return inodes
