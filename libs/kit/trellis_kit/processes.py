"""Child processes that cannot be left behind, and what a process does to guard itself (Linux)."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


# Between fork and exec no code of ours may run: with gRPC's threads in the process, a child that runs Python there
# aborts now and then. So a small program takes the steps that belong into the child and becomes what was asked for.
_LAUNCHER = """
import ctypes, os, sys
parent, number, memory, cpus, oom, fence, count, *argv = sys.argv[1:]
hidden, argv = argv[: int(count or 0)], argv[int(count or 0) :]
ctypes.CDLL(None).prctl(1, int(number), 0, 0, 0)
if os.getppid() != int(parent):
    os._exit(143)
if oom:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(oom)
if memory:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
if cpus:
    # Neighbours by their number, so that the children of one parent do not all share the first processors.
    allowed = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(allowed)
    os.sched_setaffinity(0, (allowed + allowed)[first : first + min(int(cpus), len(allowed))])
if count:
    import runpy
    runpy.run_path(fence)["Fence"](hidden, free=[os.getcwd()]).close()
os.execv(argv[0], argv)
"""
_FENCE = Path(__file__).with_name("fence.py")


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    new_session: bool = False,
    pass_fds: Sequence[int] = (),
    death_signal: signal.Signals = signal.SIGTERM,
    memory: int | None = None,
    cpus: int | None = None,
    oom_score_adj: int | None = None,
    hidden: Sequence[Path] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that gets `death_signal` when the calling thread ends, however it ends.

    `memory` bounds its address space in bytes, `cpus` the number of processors it may use; `oom_score_adj` says how
    readily the kernel ends it when memory runs out, up to 1000 (lowering it needs privileges). Where `hidden` is given,
    neither it nor what it starts can read or change these files and folders (`cwd` is exempt), or signal processes
    outside, as far as the kernel can: see fence.py. Raises FileNotFoundError when the program does not exist or may not
    be executed.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    # The child sets its own score: a parent that made itself non-dumpable has no say in /proc over one that just began.
    limits = ("" if limit is None else str(limit) for limit in (memory, cpus, oom_score_adj))
    fence = ("", "") if hidden is None else (str(_FENCE), str(len(hidden)), *map(str, hidden))
    own = (str(os.getpid()), str(int(death_signal)), *limits, *fence)
    launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, *own)
    return subprocess.Popen(
        [*launcher, os.path.abspath(program), *argv[1:]],
        env=None if env is None else dict(env),
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=new_session,
        pass_fds=tuple(pass_fds),
    )


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process instead of init's, so that it can end them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def take_descriptors() -> None:
    """Have as many descriptors as the platform lets this process have: each connection takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def make_non_dumpable() -> None:
    """Other processes of the same user can no longer read this one's memory, environment or descriptors in /proc."""
    _prctl(_PR_SET_DUMPABLE, 0)


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    for task in tasks:
        try:
            found.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:
            continue  # the thread or the process ended meanwhile
    return found


def descendants(pid: int) -> list[int]:
    """Every process below this one, parents before their children."""
    found: list[int] = []
    queue = children(pid)
    while queue:
        child = queue.pop(0)
        found.append(child)
        queue.extend(children(child))
    return found


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it; stops each one first, so that none can fork meanwhile."""
    stopped: list[int] = []
    queue = [pid]
    while queue:
        current = queue.pop()
        if _signal(current, signal.SIGSTOP):
            stopped.append(current)
            queue.extend(children(current))
    for one in stopped:
        _signal(one, signal.SIGKILL)


def kill_descendants(keep: frozenset[int] = frozenset()) -> None:
    """Kill every process below this one except those in `keep` and what is below them, and reap what can be reaped."""
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        doomed = [child for child in children(os.getpid()) if child not in keep]
        if not doomed:
            return
        for child in doomed:
            kill_tree(child)
        for child in doomed:
            try:
                os.waitpid(child, 0)
            except ChildProcessError:
                continue  # somebody else has reaped it


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
