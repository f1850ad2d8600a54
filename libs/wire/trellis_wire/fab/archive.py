"""Reading a FAB that anybody may have made: every size, name and hash is checked before anything is written.

A FAB is a zip archive with pyproject.toml, the app's files and `.info/CONTENT`, whose lines are
``path,sha256,size in bits``. Flower up to 1.26 leaves pyproject.toml out of CONTENT, later releases put it first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

from trellis_wire.fab.project import (
    MAX_PYPROJECT,
    MAX_SIZE,
    PYPROJECT,
    FabError,
    FabInfo,
    describe,
    fab_hash,
    read_project,
)

MAX_UNPACKED: Final = 100 * 1024 * 1024
"""Bytes of all members together, unpacked."""
MAX_MEMBERS: Final = 10_000
MANIFEST: Final = ".info/CONTENT"

_CENTRAL_ENTRY: Final = b"PK\x01\x02"
_ENCRYPTED: Final = 0x1
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_MAX_NAME: Final = 1024
_PIECE: Final = 256 * 1024
# What zipfile and zlib raise on archives that are damaged or lie about themselves.
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


def inspect(content: bytes) -> FabInfo:
    """Check a FAB completely and describe the app in it. Up to half a second of CPU for the largest. FabError."""
    with _open(content) as archive:
        return _check(archive, content)


def unpack(content: bytes, target: Path) -> FabInfo:
    """Check a FAB as `inspect` does and write its files (without `.info`) into `target`, whole or not at all.

    `target` must not exist yet, or be an empty folder (FileExistsError); its parents are made. FabError.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is no empty folder.")
    with _open(content) as archive:
        info = _check(archive, content)
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            work.chmod(0o755)
            for member in _files(archive):
                if not member.filename.startswith(".info/"):
                    _write(archive, member, work / member.filename)
            os.rename(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return info


def _open(content: bytes) -> zipfile.ZipFile:
    if len(content) > MAX_SIZE:
        raise FabError(
            f"The FAB has {len(content):,} bytes and at most {MAX_SIZE:,} are allowed; leave data files out, "
            "for example with 'fab-exclude' in [tool.flwr.app]."
        )
    # Counted before zipfile builds an object for each: a directory of a million entries fits into 10 MiB.
    if content.count(_CENTRAL_ENTRY) > MAX_MEMBERS:
        raise FabError(f"The FAB has more than {MAX_MEMBERS:,} files; leave files out that the app does not need.")
    try:
        return zipfile.ZipFile(BytesIO(content))
    except _BROKEN as error:
        raise FabError("The FAB is not a zip archive; build it with 'flwr build' and send that file.") from error


def _check(archive: zipfile.ZipFile, content: bytes) -> FabInfo:
    members = _files(archive)
    _check_members(archive.infolist())
    _check_names([member.filename for member in members])
    files = {member.filename: member for member in members}
    if PYPROJECT not in files:
        raise FabError(f"The FAB has no {PYPROJECT}; build it with 'flwr build' in the app's folder.")
    if MANIFEST not in files:
        raise FabError(f"The FAB has no {MANIFEST}; build it with 'flwr build' instead of zipping it by hand.")
    _check_manifest(archive, files)
    return describe(read_project(_read(archive, files[PYPROJECT], MAX_PYPROJECT)), fab_hash(content))


def _files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [member for member in archive.infolist() if not member.is_dir()]


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if sum(member.file_size for member in members) > MAX_UNPACKED:
        raise FabError(
            f"The FAB unpacks to more than {MAX_UNPACKED:,} bytes; leave data files out, "
            "for example with 'fab-exclude' in [tool.flwr.app]."
        )
    for member in members:
        name = member.orig_filename
        if member.flag_bits & _ENCRYPTED:
            raise FabError(f"The FAB's member {name[:80]!r} is encrypted; build it with 'flwr build'.")
        if member.compress_type not in _METHODS:
            raise FabError(f"The FAB's member {name[:80]!r} is packed in an unknown way; build it with 'flwr build'.")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise FabError(f"The FAB's member {name[:80]!r} is a link; put the file itself into the app.")
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR} or (kind == stat.S_IFDIR) > member.is_dir():
            raise FabError(f"The FAB's member {name[:80]!r} is no ordinary file; leave it out of the app.")
        _check_name(name)


def _check_name(name: str) -> None:
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        raise FabError(f"The FAB's member {name[:80]!r} has an absolute path; paths must be relative to the app.")
    if ".." in parts:
        raise FabError(f"The FAB's member {name[:80]!r} leads out of the app with '..'; keep its files inside.")
    if (
        "" in parts
        or "." in parts
        or "\\" in name
        or not name.isprintable()
        or len(name) > _MAX_NAME
        or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts)
    ):
        raise FabError(f"The FAB's member {name[:80]!r} has a name that cannot be unpacked; rename it.")


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FabError(f"The FAB holds {name[:80]!r} twice; build it with 'flwr build'.")
        seen.add(name)
    for name in names:
        parent = name.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise FabError(f"The FAB holds {parent[:80]!r} both as a file and as a folder; rename one of them.")
            parent = parent.rpartition("/")[0]


def _check_manifest(archive: zipfile.ZipFile, files: dict[str, zipfile.ZipInfo]) -> None:
    try:
        text = _read(archive, files[MANIFEST], MAX_MEMBERS * 2 * _MAX_NAME).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FabError(f"The FAB's {MANIFEST} is not text; build it with 'flwr build'.") from error
    listed: set[str] = set()
    for line in filter(None, text.split("\n")):
        name, _, rest = line.rpartition(",")[0].rpartition(",")
        size = line.rpartition(",")[2]
        if not name or name in listed:
            raise FabError(f"The FAB's {MANIFEST} cannot be read; build it with 'flwr build'.")
        listed.add(name)
        member = files.get(name)
        if member is None:
            raise FabError(f"The FAB's {MANIFEST} lists {name[:80]!r}, which is missing; build the app again.")
        if size != str(member.file_size * 8) or _digest(archive, member) != rest:
            raise FabError(f"The FAB's file {name[:80]!r} is not the one its {MANIFEST} lists; build the app again.")
    for name in files.keys() - listed - {PYPROJECT}:
        if not name.startswith(".info/"):
            raise FabError(f"The FAB's file {name[:80]!r} is not listed in its {MANIFEST}; build the app again.")


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The member's bytes. zipfile stops at the size that was announced and checked, so a bomb cannot unfold."""
    try:
        with archive.open(member) as source:
            while piece := source.read(_PIECE):
                yield piece
    except _BROKEN as error:
        raise FabError(f"The FAB's member {member.filename[:80]!r} is damaged; build and send it again.") from error


def _digest(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(archive, member):
        digest.update(piece)
    return digest.hexdigest()


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    if member.file_size > limit:
        raise FabError(f"The FAB's {member.filename} has more than {limit:,} bytes; build it with 'flwr build'.")
    return b"".join(_pieces(archive, member))


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        for piece in _pieces(archive, member):
            target.write(piece)
