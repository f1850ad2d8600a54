"""`trellis up` with the real programs: it comes up, and however it ends nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trellis_kit.processes import descendants

_SECONDS = 60.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def up(directory: Path, guest: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`trellis up` as a process, and the file with all that it says."""
    said = directory.parent / "said"
    words = ("up", "--supernodes", "1", "--free-ports", "--directory", str(directory), "--guest-python", str(guest))
    with said.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "trellis_cli", *words], stdout=file, stderr=file)
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_ready_federation_ends_with_its_keeper(tmp_path: Path, guest: Path, number: signal.Signals) -> None:
    with up(tmp_path / "federation", guest) as (process, said):
        wait_for(lambda: "is ready" in said.read_text() or process.poll() is not None, "it is ready")
        assert process.poll() is None, said.read_text()
        family = descendants(process.pid)
        assert len(family) >= 4  # the SuperLink, a SuperNode and two executors
        process.send_signal(number)
        assert process.wait(_SECONDS) == (-signal.SIGKILL if number is signal.SIGKILL else 0), said.read_text()
        wait_for(lambda: not any(map(lives, family)), f"{family} have ended")


@contextmanager
def demo(temporary: Path, guest: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`trellis demo` as a process that has begun to train, its folder below `temporary`, and what it says."""
    said = temporary.parent / f"said-{len(list(temporary.parent.iterdir()))}"
    app = Path(__file__).parents[3] / "examples" / "digits"
    words = ("demo", str(app), "--supernodes", "1", "--guest-python", str(guest))
    more = ("--run-config", "min-sites=1 num-server-rounds=10000")
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "trellis_cli", *words, *more],
            stdout=file,
            stderr=file,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    try:
        wait_for(lambda: "round 1/" in said.read_text() or process.poll() is not None, "it trains")
        assert process.poll() is None, said.read_text()
        yield process, said
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_demo_leaves_is_removed_by_the_next(tmp_path: Path, guest: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with demo(temporary, guest) as (process, _):
        family = descendants(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(lives, family)), f"{family} have ended")
        (left,) = temporary.iterdir()
    with demo(temporary, guest) as (process, said):
        assert not left.exists()
        (own,) = temporary.iterdir()
        with demo(temporary, guest):  # what is in use stays
            assert own.exists()
        family = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(_SECONDS) == 130, said.read_text()
        wait_for(lambda: not any(map(lives, family)), f"{family} have ended")
        assert not own.exists()


def test_a_role_that_is_killed_ends_all_and_is_named(tmp_path: Path, guest: Path) -> None:
    with up(tmp_path / "federation", guest) as (process, said):
        wait_for(lambda: "is ready" in said.read_text() or process.poll() is not None, "it is ready")
        family = descendants(process.pid)
        (superlink,) = [pid for pid in family if b"trellis-superlink\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(superlink, signal.SIGKILL)
        assert process.wait(_SECONDS) == 1
        assert "superlink was killed by SIGKILL" in said.read_text()
        wait_for(lambda: not any(map(lives, family)), f"{family} have ended")


def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path, guest: Path) -> None:
    with up(tmp_path / "federation", guest) as (process, said):
        wait_for(lambda: len(descendants(process.pid)) >= 2 or process.poll() is not None, "the first roles start")
        family = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(_SECONDS) == 0, said.read_text()
        wait_for(lambda: not any(map(lives, family)), f"{family} have ended")


def test_detached_and_ended_by_down(tmp_path: Path, guest: Path) -> None:
    directory = tmp_path / "federation"
    base = [sys.executable, "-m", "trellis_cli"]
    options = ["--supernodes", "1", "--free-ports", "--directory", str(directory), "--guest-python", str(guest)]
    started = subprocess.run([*base, "up", "--detach", *options], capture_output=True, text=True, timeout=_SECONDS)
    assert started.returncode == 0, started.stdout + started.stderr
    keeper = int((directory / "up.pid").read_text())
    family = descendants(keeper)
    again = subprocess.run([*base, "up", *options], capture_output=True, text=True, timeout=_SECONDS)
    assert (again.returncode, "already" in again.stderr) == (1, True)
    ended = subprocess.run(
        [*base, "down", "--directory", str(directory)], capture_output=True, text=True, timeout=_SECONDS
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wait_for(lambda: not any(map(lives, [keeper, *family])), "all have ended")
    assert not os.path.exists(directory / "up.pid")


def test_a_role_that_cannot_start_is_named(tmp_path: Path) -> None:
    with up(tmp_path / "federation", tmp_path / "nowhere") as (process, said):
        assert process.wait(_SECONDS) == 2
        assert "--guest-python" in said.read_text()


def test_a_role_that_ends_says_why_in_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    python.chmod(0o755)
    with up(tmp_path / "federation", python) as (process, said):
        assert process.wait(_SECONDS) == 1
        assert "ended with exit code 2:\n" in said.read_text()
        assert str(python) in said.read_text()
        assert '{"time"' not in said.read_text()
