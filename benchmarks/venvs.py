"""Environments with a stock release of flwr, made once and kept: `~/.cache/trellis/venvs/flwr-<version>`."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("numpy", "scikit-learn")


def ensure(version: str) -> Path:
    """The environment's folder; made first where it is missing (by uv if there is one, else by venv and pip)."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trellis" / "venvs"
    target = home / f"flwr-{version}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"flwr-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "bin" / "flwr").exists():
            shutil.rmtree(target, ignore_errors=True)
            _make(target, [f"flwr=={version}", *PACKAGES])
    return target


def _make(target: Path, packages: list[str]) -> None:
    python = str(target / "bin" / "python")
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(target)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
