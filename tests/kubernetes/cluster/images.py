"""The images of the cluster itself, as archives that `docker load` and `ctr import` take; no engine is needed."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.layout import BUSYBOX, COREDNS, PAUSE

_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Image:
    """One layer: programs from this machine (path inside -> file here), and links (path inside -> target)."""

    tag: str
    files: Mapping[str, Path]
    entrypoint: Sequence[str]
    links: Mapping[str, str]

    def archive(self) -> bytes:
        layer = self._layer()
        config = {
            "architecture": _PROCESSORS[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": list(self.entrypoint), "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [self.tag], "Layers": ["layer.tar"]}]
        members = {"layer.tar": layer, "config.json": _json(config), "manifest.json": _json(manifest)}
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w") as tar:
            for name, data in members.items():
                _add(tar, name, data)
        return written.getvalue()

    def _layer(self) -> bytes:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w") as tar:
            for name in ("bin", "tmp"):
                folder = tarfile.TarInfo(name)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                tar.addfile(folder)
            for name, path in self.files.items():
                _add(tar, name, path.read_bytes(), 0o755)
            for name, target in self.links.items():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, target
                tar.addfile(link)
        return written.getvalue()


def own_images(coredns: Path) -> list[Image]:
    """What every pod stands on, DNS, and a small shell for tests."""
    busybox = Path("/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    links = {f"bin/{name}": "busybox" for name in applets if name != "busybox"}
    return [
        # Holds a pod's namespaces; killed with it.
        Image(PAUSE, {"bin/busybox": busybox}, ["/bin/busybox", "tail", "-f", "/dev/null"], {}),
        Image(BUSYBOX, {"bin/busybox": busybox}, [], links),
        Image(COREDNS, {"bin/coredns": coredns}, ["/bin/coredns"], {}),
    ]


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    tar.addfile(member, io.BytesIO(data))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
