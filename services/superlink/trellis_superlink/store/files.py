"""Where large objects live: files under one folder, each written once under a name of its own.

A file is synced, and so is its folder, before the row that names it is committed; nothing but a row makes it count. So
a crash leaves at most a file without a row, which `sweep` removes at the next start. Names are never reused, so
deleting an old copy cannot hit a new one. Writing is our own because obstore's `file://` never syncs; reading and
deleting go through obstore, where `s3://` and the like take its place later.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import obstore
from obstore.store import LocalStore

from trellis_superlink.store.errors import TryAgainLater, passing

_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{8}\Z")


class Incoming:
    """A file being written. All methods block: call them in a thread. OSError as the disk gives it."""

    def __init__(self, root: Path, location: str) -> None:
        self.location = location
        self._path = root / location
        if not self._path.parent.is_dir():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(self._path.parent.parent)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def settle(self) -> None:
        """Returns once the bytes and the name are on the disk."""
        os.fsync(self._file)
        self._close()
        sync_folder(self._path.parent)

    def discard(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Files:
    """The files of one SuperLink under `root`."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root = root
        self._store = LocalStore(root)

    def begin(self, object_id: str) -> Incoming:
        """Starts a new file for the object; blocks briefly."""
        return Incoming(self.root, f"{object_id[:2]}/{object_id}-{secrets.token_hex(4)}")

    async def read(self, location: str, start: int, length: int) -> memoryview:
        """A range of a file. FileNotFoundError when it was freed meanwhile; TryAgainLater on input/output errors."""
        try:
            return memoryview(await obstore.get_range_async(self._store, location, start=start, length=length))
        except OSError as error:
            if passing(error):
                raise TryAgainLater(str(error).splitlines()[0]) from error
            raise

    async def delete(self, locations: Iterable[str]) -> None:
        """Removes files; one that is gone already is fine, one that cannot go now is left to the next sweep."""
        for location in locations:
            try:
                await obstore.delete_async(self._store, location)
            except OSError:
                continue

    def sweep(self, known: set[str]) -> int:
        """Removes what no row names, of the files that this class has written; how many. Blocks; only before anybody
        writes."""
        removed = 0
        for folder in os.scandir(self.root):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(folder.path):
                if _NAME.match(file.name) and f"{folder.name}/{file.name}" not in known:
                    os.unlink(file.path)
                    removed += 1
        return removed
