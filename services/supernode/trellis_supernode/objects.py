"""The objects of each run on this node: small ones in memory and in the ledger, large ones in files."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Final

from trellis_wire.objects import ObjectError, PartVerifier, Tree, verify_object

SMALL: Final = 64 * 1024
"""Bytes of an object up to which it is kept in the ledger."""
_PARTIAL: Final = ".part"


class ObjectStore:
    """Knows which objects are here. A large one is here once its file and folder are synced.

    What small objects the ledger keeps is the caller's to see to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._small: dict[int, dict[str, bytes]] = {}
        self._large: dict[int, dict[str, int]] = {}  # size in bytes

    def open(self) -> None:
        """Finds the files of an earlier life; what was not whole is removed."""
        self._root.mkdir(parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            if not folder.name.isdigit():
                continue
            for path in folder.iterdir():
                if path.suffix == _PARTIAL:
                    path.unlink()
                else:
                    self._large.setdefault(int(folder.name), {})[path.name] = path.stat().st_size

    @property
    def runs(self) -> set[int]:
        """The runs that have objects here."""
        return self._small.keys() | self._large.keys()

    def has(self, run_id: int, object_id: str) -> bool:
        return object_id in self._small.get(run_id, {}) or object_id in self._large.get(run_id, {})

    def missing(self, run_id: int, *trees: Tree) -> list[str]:
        """The objects of the trees that are not here, each once, children first."""
        wanted = dict.fromkeys(object_id for tree in trees for object_id in tree.post_order())
        return [object_id for object_id in wanted if not self.has(run_id, object_id)]

    def size(self, run_id: int, object_id: str) -> int:
        """Bytes; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        return self._large.get(run_id, {})[object_id] if small is None else len(small)

    def add_small(self, run_id: int, objects: Mapping[str, bytes]) -> None:
        """Verified objects, into memory."""
        if objects:
            self._small.setdefault(run_id, {}).update(objects)

    def small_of(self, run_id: int, *trees: Tree) -> dict[str, bytes]:
        """The small objects of the trees that are here, the roots first."""
        known = self._small.get(run_id, {})
        wanted = (object_id for tree in trees for object_id in reversed(tree.post_order()))
        return {object_id: known[object_id] for object_id in wanted if object_id in known}

    async def put(self, run_id: int, object_id: str, content: bytes) -> bytes | None:
        """Verifies and takes a whole object: its content if it is small (for the ledger), None if it lies in a file.

        ObjectError, OSError.
        """
        if len(content) <= SMALL:
            verify_object(object_id, content)
            self.add_small(run_id, {object_id: content})
            return content
        writer = self.writer(run_id, object_id, len(content))
        try:
            await writer.add(0, content)
            return await writer.finish()
        finally:
            writer.close()

    def writer(self, run_id: int, object_id: str, size: int) -> Writer:
        """Takes a new object in parts."""
        return Writer(self, run_id, object_id, size)

    async def read(self, run_id: int, object_id: str) -> bytes:
        """A whole object; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        if small is not None:
            return small
        self.size(run_id, object_id)
        return await asyncio.to_thread(self._path(run_id, object_id).read_bytes)

    async def parts(self, run_id: int, object_id: str, size: int) -> AsyncIterator[bytes]:
        """An object in parts of `size` bytes; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        if small is not None:
            for start in range(0, len(small), size):
                yield small[start : start + size]
            return
        self.size(run_id, object_id)
        with self._path(run_id, object_id).open("rb", buffering=0) as file:
            while part := await asyncio.to_thread(file.read, size):
                yield part

    def keep_only(self, run_id: int, wanted: set[str]) -> list[str]:
        """Drop what is not wanted; the ids of the small ones, for the ledger."""
        large = self._large.get(run_id, {})
        for object_id in [one for one in large if one not in wanted]:
            del large[object_id]
            self._path(run_id, object_id).unlink(missing_ok=True)
        small = self._small.get(run_id, {})
        dropped = [one for one in small if one not in wanted]
        for object_id in dropped:
            del small[object_id]
        return dropped

    def forget(self, run_id: int) -> None:
        """Drop everything of a run."""
        self._small.pop(run_id, None)
        self._large.pop(run_id, None)
        shutil.rmtree(self._root / str(run_id), ignore_errors=True)

    def _path(self, run_id: int, object_id: str) -> Path:
        return self._root / str(run_id) / object_id

    def _create(self, run_id: int, object_id: str) -> tuple[Path, int]:
        folder = self._root / str(run_id)
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._root)
        path = folder / f"{object_id}.{os.urandom(4).hex()}{_PARTIAL}"
        return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


class Writer:
    """One object on its way in: `add` its parts, then `finish`; `close` in any case. A thread does the work."""

    def __init__(self, store: ObjectStore, run_id: int, object_id: str, size: int) -> None:
        self._store = store
        self._run_id = run_id
        self.object_id = object_id
        self._verifier = PartVerifier(object_id, size)
        self._memory: bytearray | None = bytearray() if size <= SMALL else None
        self._path: Path | None = None
        self._fd = -1

    @property
    def complete(self) -> bool:
        return self._verifier.received == self._verifier.size

    async def add(self, offset: int, data: bytes) -> None:
        """The next part. ObjectError when it does not follow the one before or the object cannot be right; OSError."""
        if offset != self._verifier.received:
            raise ObjectError(f"The parts of object {self.object_id[:16]} do not follow each other.")
        if self._memory is not None:
            self._verifier.feed(data)
            self._memory += data
        else:
            await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        self._verifier.feed(data)
        if self._path is None:
            self._path, self._fd = self._store._create(self._run_id, self.object_id)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    async def finish(self) -> bytes | None:
        """Verified and in the store: the content of a small object (for the ledger), None for a synced large one."""
        self._verifier.finish()
        if self._memory is not None:
            content = bytes(self._memory)
            self._store.add_small(self._run_id, {self.object_id: content})
            return content
        await asyncio.to_thread(self._sync)
        self._store._large.setdefault(self._run_id, {})[self.object_id] = self._verifier.size
        return None

    def _sync(self) -> None:
        assert self._path is not None
        os.fsync(self._fd)
        target = self._store._path(self._run_id, self.object_id)
        self._path.rename(target)
        self._path = None
        sync_folder(target.parent)

    def close(self) -> None:
        """Forget what came, if it was not finished."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def verified(objects: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """Objects that came inside a message. ObjectError for one that is not what it says."""
    found = dict(objects)
    for object_id, content in found.items():
        verify_object(object_id, content)
    return found


def sync_folder(folder: Path) -> None:
    """What was renamed into the folder stays there, whatever happens to the machine."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
