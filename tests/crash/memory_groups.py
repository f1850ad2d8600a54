"""A limit on the memory of running processes that the kernel enforces, as a container's does."""

from __future__ import annotations

import resource
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trellis_kit.processes import descendants

_V2 = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Kind:
    """Version 1 or 2 of control groups: the group of this process, and the names of what is needed in one."""

    own: Path
    limit: str
    events: str


class MemoryGroup:
    """`kills`: how many processes the kernel has ended for want of memory; None where it could make no group.

    Then the processes have a limit on their address space instead (RLIMIT_AS): they are refused memory, and live.
    """

    def __init__(self, events: Path | None) -> None:
        self._events = events

    @property
    def kills(self) -> int | None:
        if self._events is None:
            return None
        counts = dict(line.split() for line in self._events.read_text().splitlines())
        return int(counts["oom_kill"])


@contextmanager
def memory_group(pid: int, room: int) -> Iterator[MemoryGroup]:
    """Whatever the process and those below it take from now on, to the end of the block: `room` bytes at most."""
    kind = _kind()
    processes = [pid, *descendants(pid)]
    group = None if kind is None else kind.own / f"trellis-{secrets.token_hex(4)}"
    try:
        if kind is None or group is None:
            raise OSError
        group.mkdir()
        (group / kind.limit).write_text(str(room))
        _move(processes, group)
    except OSError:  # not root, or a container that may not
        group = None
        for one in processes[1:]:
            used = int(Path(f"/proc/{one}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(one, resource.RLIMIT_AS, (used + room, used + room))
    if kind is None or group is None:
        yield MemoryGroup(None)
        return
    try:
        yield MemoryGroup(group / kind.events)
    finally:
        _dissolve(group, kind.own)


def _dissolve(group: Path, into: Path) -> None:
    """Move what is in the group, and what is forked meanwhile, and remove it."""
    end = time.monotonic() + 5.0
    while True:
        _move(map(int, (group / "cgroup.procs").read_text().split()), into)
        try:
            group.rmdir()
            return
        except OSError:  # something was forked, or is just ending
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _kind() -> _Kind | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _Kind(_V2 / "memory" / path.lstrip("/"), "memory.limit_in_bytes", "memory.oom_control")
    if (_V2 / "cgroup.controllers").exists():
        return _Kind(_V2, "memory.max", "memory.events")
    return None


def _move(processes: Iterable[int], group: Path) -> None:
    for one in processes:
        try:
            (group / "cgroup.procs").write_text(str(one))
        except ProcessLookupError:
            continue  # it has ended
