"""scripts/make-venv: whole environments or none, whenever it is interrupted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trellis_kit.processes import descendants

SCRIPT = Path(__file__).parents[3] / "scripts" / "make-venv"
NOTHING = "# nothing\n"


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


@pytest.fixture
def silent_index() -> Iterator[socket.socket]:
    """A package index that takes connections and never answers: pip waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


class Making:
    """`make-venv` as a process, for a folder and requirements below `directory`."""

    def __init__(self, directory: Path, requirements: str, *packages: Path) -> None:
        self.folder = directory / "venv"
        (directory / "requirements.txt").write_text(requirements)
        self.output = directory / "output"
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                ["bash", SCRIPT, sys.executable, self.folder, directory / "requirements.txt", *packages],
                stdout=file,
                stderr=file,
                env={**clean, "PIP_CONFIG_FILE": os.devnull},
                start_new_session=True,
            )

    def reaches(self, condition: Callable[[], object], what: str) -> None:
        wait_for(lambda: condition() or self.process.poll() is not None, what)
        assert self.process.poll() is None, self.output.read_text()

    def end(self) -> int:
        return self.process.wait(200)

    def says(self, code: str) -> str:
        """What the made interpreter prints."""
        done = subprocess.run([self.folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.strip()


def asks(server: socket.socket) -> str:
    """Requirements for which pip asks this index."""
    return f"--index-url http://127.0.0.1:{server.getsockname()[1]}/\nanything==1.0 --hash=sha256:{'0' * 64}\n"


# A package that brings what builds it, as no index is asked here.
PYPROJECT = """
[build-system]
requires = []
build-backend = "build"
backend-path = ["."]
"""
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "ours-1.0-py3-none-any.whl", "ours-1.0.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("ours.pth", str(pathlib.Path(__file__).parent))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: ours\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "build.py").write_text(BACKEND)
    (folder / "ours.py").touch()
    return folder


def begun_anew(directory: Path) -> None:
    """The next call does not take what is there for an environment."""
    half = directory / "venv" / "half"
    half.touch()
    again = Making(directory, NOTHING)
    again.reaches(lambda: not half.exists(), "what was there is removed")
    again.process.terminate()
    assert again.end() == 128 + signal.SIGTERM
    assert not again.folder.exists()


def test_the_life_of_an_environment(tmp_path: Path, package: Path) -> None:
    for _ in range(2):  # as after a change of the requirements: the second call keeps what is there
        making = Making(tmp_path, NOTHING, package)
        assert making.end() == 0, making.output.read_text()
        assert making.says("import pip, sys; print(sys.prefix)") == str(making.folder)
        assert making.says("import ours; print(ours.__file__)") == str(package / "ours.py")
        (making.folder / "kept").touch()
    assert "Making" not in making.output.read_text()
    assert (making.folder / "kept").exists()
    # A change that fails may have exchanged some packages and not others: that is nobody's environment.
    failed = Making(tmp_path, f"--no-index\nanything==1.0 --hash=sha256:{'0' * 64}\n")
    assert failed.end() not in (0, None)
    assert "anything" in failed.output.read_text()
    begun_anew(tmp_path)


@pytest.mark.parametrize(
    ("moment", "number"), [("making", signal.SIGINT), ("making", signal.SIGTERM), ("installing", signal.SIGINT)]
)
def test_interrupted_it_leaves_nothing(
    moment: str, number: signal.Signals, tmp_path: Path, silent_index: socket.socket
) -> None:
    making = Making(tmp_path, asks(silent_index))
    if moment == "making":
        making.reaches(lambda: (making.folder / "bin" / "python").exists(), "there is an interpreter without pip")
    else:
        silent_index.settimeout(200)
        silent_index.accept()  # pip asks, and waits
    family = descendants(making.process.pid)
    assert family
    os.killpg(making.process.pid, number)  # as the terminal does
    assert making.end() == 128 + number, making.output.read_text()
    assert not making.folder.exists()
    assert not [pid for pid in family if Path(f"/proc/{pid}/exe").exists()]


def test_cut_off_it_is_made_anew(tmp_path: Path, silent_index: socket.socket) -> None:
    making = Making(tmp_path, asks(silent_index))
    silent_index.settimeout(200)
    silent_index.accept()
    for pid in [making.process.pid, *descendants(making.process.pid)]:
        os.kill(pid, signal.SIGKILL)
    making.end()
    begun_anew(tmp_path)


def test_a_python_that_is_too_old_is_told(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 || exit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["bash", SCRIPT, old, tmp_path / "venv", os.devnull], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "Python 3.11 or later" in done.stderr
    assert "3.9.1" in done.stderr
    assert not (tmp_path / "venv").exists()
