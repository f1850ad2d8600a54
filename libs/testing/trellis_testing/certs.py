"""Certificates for a federation under test, as `trellis certs init` makes them, and the flags that name them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trellis_kit.federation import Isolation, find_program


@dataclass(frozen=True)
class Certs:
    """The folder; roles are called as in a federation (`superlink`, `supernode-1`)."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, supernodes: int, names: Iterable[str] = ()) -> Certs:
        """New CAs and certificates. `names` are more of them for the SuperLink."""
        made = cls(folder)
        more = [word for name in names for word in ("--name", name)]
        made.command("init", "--supernodes", str(max(1, supernodes)), *more)
        return made

    def command(self, *words: str) -> None:
        """`trellis certs <words>` on this folder."""
        name, *rest = words
        argv = [find_program("trellis"), "certs", name, "--directory", str(self.folder), *rest]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}")

    def readable_by_all(self) -> None:
        """For containers, which run as somebody else; nothing here outlives the test."""
        for path in self.folder.glob("*/*"):
            path.chmod(0o644)
            path.parent.chmod(0o755)

    @property
    def ca(self) -> Path:
        """Whom SuperNodes and command lines trust."""
        return self.folder / "ca.crt"

    def flags(self, role: str, isolation: Isolation = "process", folder: Path | None = None) -> tuple[str, ...]:
        """In place of `--insecure`: TLS on every connection, between executors and their service on both sides.

        With subprocess isolation that last connection is the service's own affair. `folder` is where the role finds its
        files if not here.
        """
        at = folder or self.folder / role
        own = (str(at / "tls.crt"), str(at / "tls.key"))
        served = ("--ssl-certfile", own[0], "--ssl-keyfile", own[1])
        trusted = ("--root-certificates", str(at / "ca.crt"))
        executors = ("--executor-ca-certfile", str(at / "executor-ca.crt"))
        if isolation == "subprocess":
            return (*served, "--ssl-ca-certfile", str(at / "ca.crt")) if role == "superlink" else trusted
        if role == "superlink":
            return (*served, *executors)
        if role.startswith("supernode"):
            return (*trusted, *served, *executors)
        return (*trusted, "--certfile", own[0], "--keyfile", own[1])
