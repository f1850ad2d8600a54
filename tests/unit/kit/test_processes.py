"""Child processes: they end with who started them, in whole families, and get no more than they may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit_programs import Program, lives
from trellis_kit import processes
from trellis_kit.processes import children, descendants, kill_tree, spawn
from waits import wait_until

STAYS = "import time; print('up', flush=True); time.sleep(300)"


def output(code: str, **limits: Any) -> str:
    child = spawn([sys.executable, "-c", code], stdout=subprocess.PIPE, **limits)
    out, _ = child.communicate(timeout=30)
    return out.decode().strip()


# ---- ending with the parent ------------------------------------------------------------------------------------------

PARENT = f"""
import signal, subprocess, sys
from trellis_kit.processes import spawn
number = signal.Signals(int(sys.argv[1]))
child = spawn([sys.executable, "-c", {STAYS!r}], stdout=subprocess.PIPE, new_session=True, death_signal=number)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_killed_parent(number: signal.Signals) -> None:
    parent = Program(PARENT, str(int(number)))
    child = int(parent.line())
    assert lives(child)
    parent.process.kill()
    wait_until(lambda: not lives(child), "the child has ended")
    parent.end()


def test_a_child_whose_parent_is_gone_before_it_begins_does_not_begin(tmp_path: Path) -> None:
    """Between fork and the request to the kernel the parent may die: the child finds another parent, and ends."""
    begun = tmp_path / "begun"
    program = (sys.executable, "-c", f"open({str(begun)!r}, 'w')")
    own = [str(os.getpid() + 1), str(int(signal.SIGTERM)), *[""] * 5]
    argv = [sys.executable, "-c", processes._LAUNCHER, *own]
    assert subprocess.run([*argv, *program], timeout=30).returncode == 128 + signal.SIGTERM
    assert not begun.exists()
    argv[3] = str(os.getpid())
    assert subprocess.run([*argv, *program], timeout=30).returncode == 0
    assert begun.exists()


# ---- what a child gets -----------------------------------------------------------------------------------------------


def test_memory_and_processors_are_bounded() -> None:
    limit = 1 << 30
    code = "import os, resource; print(resource.getrlimit(resource.RLIMIT_AS)[0], len(os.sched_getaffinity(0)))"
    assert output(code, memory=limit, cpus=1) == f"{limit} 1"
    assert output(code, cpus=10_000).split()[1] == str(len(os.sched_getaffinity(0)))  # no more than there are


def test_it_goes_first_when_memory_runs_out() -> None:
    assert output("print(open('/proc/self/oom_score_adj').read())", oom_score_adj=500) == "500"


def test_neighbours_do_not_share_one_processor() -> None:
    code = "import os; print(min(os.sched_getaffinity(0)))"
    assert len({output(code, cpus=1) for _ in range(20)}) >= min(2, len(os.sched_getaffinity(0)))


def test_environment_folder_descriptors_and_session(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    code = (
        "import os, sys; os.write(int(sys.argv[1]), b'here');"
        "print(os.getcwd(), sorted(os.environ.get(n, '') for n in ('A', 'HOME')), os.getsid(0) == os.getpid())"
    )
    child = spawn(
        [sys.executable, "-c", code, str(writing)],
        env={"A": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        new_session=True,
        pass_fds=[writing],
    )
    out, _ = child.communicate(timeout=30)
    assert out.decode().split(" ", 1) == [str(tmp_path), "['', '1'] True\n"]
    assert os.read(reading, 10) == b"here"
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="/no/program"):
        spawn(["/no/program"])


# ---- families --------------------------------------------------------------------------------------------------------

# A process with a child of its own, which is a session leader where asked for: no signal to the group reaches it.
FAMILY = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STAYS!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read() if len(sys.argv) == 1 else None
"""


def test_a_family_is_found_and_killed() -> None:
    parent = Program(FAMILY)
    grandchild = int(parent.line())
    pid = parent.process.pid
    assert pid in children(os.getpid())
    assert children(pid) == [grandchild]
    family = descendants(os.getpid())
    assert family.index(pid) < family.index(grandchild)
    kill_tree(pid)
    assert parent.end()[0] == -signal.SIGKILL
    wait_until(lambda: not lives(grandchild), "the grandchild has ended")
    assert children(pid) == []


REAPER = f"""
import os, subprocess, sys
from trellis_kit import processes
processes.become_subreaper()
kept = subprocess.Popen([sys.executable, "-c", {STAYS!r}], stdout=subprocess.PIPE)
kept.stdout.readline()
# This one ends at once and leaves its child behind.
orphan = subprocess.run([sys.executable, "-c", {FAMILY!r}, "end"], stdout=subprocess.PIPE, text=True).stdout.strip()
print(orphan, kept.pid, flush=True)
sys.stdin.readline()
processes.kill_descendants(frozenset([kept.pid]))
print(kept.poll(), len(processes.descendants(os.getpid())), flush=True)
processes.kill_descendants()
print(len(processes.descendants(os.getpid())), flush=True)
"""


def test_orphans_come_back_to_the_subreaper_and_end() -> None:
    reaper = Program(REAPER)
    orphan, kept = map(int, reaper.line().split())
    assert set(children(reaper.process.pid)) == {orphan, kept}
    reaper.tell()
    assert reaper.line() == "None 1"  # what is kept still runs, and nothing else does
    assert not lives(orphan)
    assert reaper.line() == "0"
    assert reaper.end()[0] == 0
    assert not lives(kept)


def test_a_service_has_the_descriptors_that_its_platform_allows() -> None:
    code = (
        "import resource; from trellis_kit.processes import take_descriptors; kind = resource.RLIMIT_NOFILE; "
        "resource.setrlimit(kind, (100, 200)); take_descriptors(); print(*resource.getrlimit(kind))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"200 200\n"
