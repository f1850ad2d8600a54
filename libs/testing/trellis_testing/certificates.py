"""Certificates for a federation under test, made by `trellis certs`, and what each role does with its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from trellis_kit.federation import find_program

FILES = ("tls.crt", "tls.key", "ca.crt", "executor-ca.crt")


def make(folder: Path, supernodes: int) -> Path:
    """A folder of its own in `folder` for each role, that anybody may read; returns the CA that clients trust."""
    program = find_program("trellis")
    argv = [program, "certs", "init", "--directory", str(folder), "--supernodes", str(supernodes)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    for role in (path for path in folder.iterdir() if path.is_dir()):
        role.chmod(0o755)
        for path in role.iterdir():
            path.chmod(0o644)  # containers run as somebody else; nothing here outlives the test
    return folder / "ca.crt"


def flags(role: str, folder: Path) -> tuple[str, ...]:
    """What a role is told about the certificates in its folder: TLS on every connection, mutual on both AppIO."""
    own = (str(folder / "tls.crt"), str(folder / "tls.key"))
    trusted = str(folder / "ca.crt")
    served = (
        "--ssl-certfile",
        own[0],
        "--ssl-keyfile",
        own[1],
        "--executor-ca-certfile",
        str(folder / "executor-ca.crt"),
    )
    shown = ("--root-certificates", trusted, "--certfile", own[0], "--keyfile", own[1])
    match role.partition("-")[0]:
        case "superlink":
            return (*served, "--ssl-ca-certfile", trusted)
        case "supernode":
            return (*served, "--root-certificates", trusted)
        case _:
            return shown
