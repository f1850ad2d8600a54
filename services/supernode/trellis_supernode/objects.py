"""The objects of each run on this node: small ones in memory and in the ledger, large ones in files."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from trellis_wire.objects import ObjectError, PartVerifier, Tree

SMALL = 64 * 1024
"""Bytes of an object up to which it is kept in the ledger."""


class ObjectStore:
    """Knows which objects are here. Writing a large one is done once its file and folder are synced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._small: dict[int, dict[str, bytes]] = {}
        self._large: dict[int, dict[str, int]] = {}  # size in bytes

    def open(self, small: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """What lies in the files; returns the small objects whose content the caller has to add again."""
        self._root.mkdir(parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            if not folder.name.isdigit():
                continue
            for path in folder.iterdir():
                if path.suffix == ".part":
                    path.unlink()
                else:
                    self._large.setdefault(int(folder.name), {})[path.name] = path.stat().st_size
        return small

    def has(self, run_id: int, object_id: str) -> bool:
        return object_id in self._small.get(run_id, {}) or object_id in self._large.get(run_id, {})

    def missing(self, run_id: int, tree: Tree) -> list[str]:
        """The objects of a tree that are not here, children first."""
        return [object_id for object_id in tree.post_order() if not self.has(run_id, object_id)]

    def size(self, run_id: int, object_id: str) -> int:
        """Bytes; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        return self._large[run_id][object_id] if small is None else len(small)

    def add_small(self, run_id: int, objects: Mapping[str, bytes]) -> None:
        """Into memory; the ledger is the caller's."""
        self._small.setdefault(run_id, {}).update(objects)

    def small_of(self, run_id: int, tree: Tree) -> dict[str, bytes]:
        """The small objects of a tree that are here."""
        known = self._small.get(run_id, {})
        return {object_id: known[object_id] for object_id in tree.post_order() if object_id in known}

    def read(self, run_id: int, object_id: str) -> bytes:
        """A whole object; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        if small is not None:
            return small
        if object_id not in self._large.get(run_id, {}):
            raise KeyError(object_id)
        return self._path(run_id, object_id).read_bytes()

    def parts(self, run_id: int, object_id: str, size: int) -> Iterator[bytes]:
        """An object in parts of `size` bytes; KeyError when it is not here."""
        small = self._small.get(run_id, {}).get(object_id)
        if small is not None:
            yield from (small[start : start + size] for start in range(0, len(small), size))
            return
        if object_id not in self._large.get(run_id, {}):
            raise KeyError(object_id)
        with self._path(run_id, object_id).open("rb") as file:
            while part := file.read(size):
                yield part

    def writer(self, run_id: int, object_id: str, size: int) -> Writer:
        """Takes a new object in parts."""
        return Writer(self, run_id, object_id, size)

    def keep_only(self, run_id: int, wanted: set[str]) -> list[str]:
        """Drop what is not wanted; returns the ids of the small ones, for the ledger."""
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
        if self._large.pop(run_id, None) is not None:
            shutil.rmtree(self._root / str(run_id), ignore_errors=True)

    def _path(self, run_id: int, object_id: str) -> Path:
        return self._root / str(run_id) / object_id

    def _keep_file(self, run_id: int, object_id: str, temporary: Path, size: int) -> None:
        path = self._path(run_id, object_id)
        temporary.rename(path)
        _sync_folder(path.parent)
        self._large.setdefault(run_id, {})[object_id] = size

    def _temporary(self, run_id: int, object_id: str) -> Path:
        folder = self._root / str(run_id)
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(self._root)
        return folder / f"{object_id}.{os.urandom(4).hex()}.part"


class Writer:
    """One object on its way in: `add` its parts, then `finish`, or `abort`."""

    def __init__(self, store: ObjectStore, run_id: int, object_id: str, size: int) -> None:
        self._store = store
        self._run_id = run_id
        self.object_id = object_id
        self._verifier = PartVerifier(object_id, size)
        self._received = 0
        self._memory: bytearray | None = bytearray() if size <= SMALL else None
        self._path: Path | None = None
        self._fd = -1

    @property
    def complete(self) -> bool:
        return self._received == self._verifier.size

    async def add(self, offset: int, data: bytes) -> None:
        """The next part. ObjectError when it does not follow the one before."""
        if offset != self._received:
            raise ObjectError(f"The parts of object {self.object_id[:16]} do not follow each other.")
        self._verifier.feed(data)
        self._received += len(data)
        if self._memory is not None:
            self._memory += data
        else:
            await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        if self._path is None:
            self._path = self._store._temporary(self._run_id, self.object_id)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    async def finish(self) -> bytes | None:
        """Verified and in the store: the content of a small object (for the ledger), None for a synced large one."""
        try:
            self._verifier.finish()
        except ObjectError:
            self.abort()
            raise
        if self._memory is not None:
            content = bytes(self._memory)
            self._store.add_small(self._run_id, {self.object_id: content})
            return content
        await asyncio.to_thread(os.fsync, self._fd)
        os.close(self._fd)
        self._fd = -1
        assert self._path is not None
        self._store._keep_file(self._run_id, self.object_id, self._path, self._received)
        return None

    def abort(self) -> None:
        """Forget what came."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
