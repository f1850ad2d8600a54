"""Child processes that never outlive their parent, and nothing of theirs that outlives them (Linux).

A child is started in a session of its own and is told by the kernel when its parent dies (PR_SET_PDEATHSIG). Whoever hosts
foreign code becomes a subreaper: what that code leaves behind, `setsid` or not, becomes our child and is found in /proc.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

_log = logging.getLogger(__name__)

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {value}): {os.strerror(error)}")


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """To be called in a new child: have the kernel send `number` when the parent's thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call above
        os.kill(os.getpid(), number)


def become_subreaper() -> None:
    """Adopt orphaned descendants of this process instead of leaving them to init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def make_non_dumpable() -> None:
    """Close /proc/self (memory, environ, open files) to other processes of the same user."""
    _prctl(_PR_SET_DUMPABLE, 0)


def set_oom_score_adj(value: int, pid: int | None = None) -> bool:
    """Tell the kernel whom to kill first when memory runs out (-1000 to 1000); False where that is not allowed."""
    try:
        Path(f"/proc/{'self' if pid is None else pid}/oom_score_adj").write_text(str(value))
    except OSError as error:
        _log.debug("oom_score_adj stays as it is: %s", error)
        return False
    return True


async def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = asyncio.subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Collection[int] = (),
    death_signal: int = signal.SIGKILL,
    oom_score_adj: int | None = None,
) -> asyncio.subprocess.Process:
    """Start a child in a session of its own that gets `death_signal` when this process dies.

    Call it from the main thread: the kernel ties the signal to the thread that forked. Raises OSError when the program
    cannot be started.
    """
    parent = os.getpid()

    def in_child() -> None:
        die_with_parent(parent, death_signal)
        if oom_score_adj is not None:
            # Raising one's own score is always allowed.
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(oom_score_adj))

    return await asyncio.create_subprocess_exec(
        *argv,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        preexec_fn=in_child,
    )


def _parents() -> dict[int, int]:
    """Each living process's parent; zombies are left out."""
    parents = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            stat = Path(f"/proc/{name}/stat").read_text()
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(name)] = int(parent)
    return parents


def descendants(pid: int) -> list[int]:
    """Living processes below `pid`, parents before their children."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    front = [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, ())]
        found.extend(front)
    return found


def strays(known: Collection[int]) -> list[int]:
    """Children of this process that are not in `known`: what was orphaned below a subreaper, with its descendants."""
    me = os.getpid()
    top = [child for child, parent in _parents().items() if parent == me and child not in known]
    return [pid for child in top for pid in (child, *descendants(child))]


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


async def end_tree(pid: int, *, grace: float = 0.0) -> None:
    """End `pid` and everything below it: SIGTERM to `pid`, SIGKILL to all that live `grace` seconds later.

    The caller still reaps `pid` itself.
    """
    below = set(descendants(pid))
    if grace > 0:
        _signal([pid], signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + grace
        while is_alive(pid) and asyncio.get_running_loop().time() < deadline:
            below.update(descendants(pid))
            await asyncio.sleep(0.02)
    # Who is killed may just have forked: stop everybody first, then look again until nobody new is there.
    doomed = {pid, *below}
    while True:
        _signal(doomed, signal.SIGSTOP)
        more = {child for parent in doomed for child in descendants(parent)} - doomed
        if not more:
            break
        doomed |= more
    _signal(doomed, signal.SIGKILL)


async def end_strays(known: Collection[int]) -> int:
    """Kill what `strays(known)` finds, until it finds nothing; returns how many were killed."""
    killed: set[int] = set()
    while found := strays(known):
        killed.update(found)
        _signal(found, signal.SIGKILL)
        await asyncio.sleep(0.01)
        reap(found)
    return len(killed)


def reap(pids: Collection[int]) -> None:
    """Collect ended children that nobody else waits for."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def is_alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
