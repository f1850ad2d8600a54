"""Stock releases of Flower, each in a virtual environment of its own that is made once and kept."""

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# flwr 1.42.0 pins a certifi that is not always to be had: it runs on what the release before it needs.
_PINNED_TOO_TIGHTLY = {(1, 42): "1.41.0"}


def cache_folder() -> Path:
    """What is made once and kept for later test sessions."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trellis"


@dataclass(frozen=True)
class StockFlwr:
    """One release of `flwr`, in `~/.cache/trellis/venvs/flwr-<version>` (or below XDG_CACHE_HOME)."""

    version: str
    extras: tuple[str, ...] = ("numpy", "scikit-learn")

    @property
    def minor(self) -> tuple[int, int]:
        """(1, 24) of 1.24.0."""
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)

    @property
    def path(self) -> Path:
        return cache_folder() / "venvs" / f"flwr-{self.version}"

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def program(self, name: str) -> str:
        """The path of one of its console scripts."""
        return str(self.path / "bin" / name)

    def ensure(self) -> "StockFlwr":
        """Make the environment where it is missing; other processes that want it wait meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(self.path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.exists():
                unfinished = self.path.with_name(self.path.name + ".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                self._make(unfinished)
                _move_scripts(unfinished, self.path)
                unfinished.rename(self.path)
        return self

    def _make(self, target: Path) -> None:
        install = _installer(target)
        base = _PINNED_TOO_TIGHTLY.get(self.minor)
        install(f"flwr=={base or self.version}", *self.extras)
        if base is not None:
            install("--no-deps", f"flwr=={self.version}")


class _installer:
    """Creates an environment and installs into it: by uv where there is one (seconds), else by venv and pip."""

    def __init__(self, target: Path) -> None:
        python = str(target / "bin" / "python")
        beside = Path(sys.executable).parent
        uv = shutil.which("uv", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
        if uv is not None:
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(target))
            self._install = (uv, "pip", "install", "--quiet", "--python", python)
        else:
            _run(sys.executable, "-m", "venv", str(target))
            self._install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")

    def __call__(self, *requirements: str) -> None:
        _run(*self._install, *requirements)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-4000:]}")


def _move_scripts(made_at: Path, target: Path) -> None:
    """Console scripts name their interpreter by its absolute path, which changes with the rename."""
    for script in (made_at / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            content = script.read_bytes()
            if bytes(made_at) in content:
                script.write_bytes(content.replace(bytes(made_at), bytes(target)))
